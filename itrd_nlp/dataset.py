"""Training data that is made when it is read, such as augmented images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


class NumberedDataset(Dataset, ABC):
    """Examples whose rows hold their place as ``itrd_nlp.losses.base.INDEX``, and may differ from epoch to epoch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at ``places``."""

    def __getitem__(self, place: int) -> dict[str, Any]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.__getitems__([place])[0]

    @abstractmethod
    def set_seed(self, seed: int) -> None:
        """Called before training: what is random depends on this seed, the epoch and the place alone."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""

    @abstractmethod
    def classes(self) -> Tensor:
        """(examples,) classes, as whole numbers."""

    @abstractmethod
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the examples and how they are made, whatever the seed."""
