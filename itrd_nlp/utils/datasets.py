"""Training data that changes with the epochs, such as augmented images, and how examples are numbered."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
from torch import Tensor
from torch.utils.data import Dataset


class Epoch(NamedTuple):
    """An epoch that begins, or goes on after a run was killed in it."""

    number: int  # from 0
    of: int  # how many there are
    seed: int  # of the run
    resumed: bool  # a part of it is done


class ChangesWithEpochs:
    """Training data or a module of the student that is told each epoch by :class:`EpochBegins`."""

    def start_epoch(self, epoch: Epoch) -> None:
        """Called before the first batch of an epoch, or before the first one after resuming."""


class NumberedDataset(ChangesWithEpochs, Dataset, ABC):
    """Examples whose rows hold their place as ``itrd_nlp.losses.base.INDEX``, and may differ from epoch to epoch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at ``places``; of images: ``pixel_values`` (channels, height, width), ``labels``, and ``INDEX``."""

    def __getitem__(self, place: int) -> dict[str, Any]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.__getitems__([place])[0]

    @abstractmethod
    def start_epoch(self, epoch: Epoch) -> None:
        """What is random depends on the epoch's number, the seed of the run and the place alone."""

    @abstractmethod
    def classes(self) -> Tensor:
        """(examples,) classes, as whole numbers."""

    @abstractmethod
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the examples and how they are made, whatever the seed."""


def numbering(data: Any) -> dict[str, Any]:
    """How many examples a training set has, as ``examples``, and their classes, as ``labels``, where it knows them.

    Nothing where batches cannot carry the places of their examples.
    """
    if isinstance(data, NumberedDataset):
        return {"examples": len(data), "labels": data.classes()}
    known = isinstance(data, datasets.Dataset) and data.format["type"] != "custom"
    return {"examples": len(data)} if known else {}
