"""Training data that is made when it is read, such as augmented images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import datasets
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class NumberedDataset(Dataset, ABC):
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
    def start_epoch(self, epoch: int, seed: int) -> None:
        """Called before each epoch: what is random depends on the epoch, the seed of the run and the place alone."""

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


class EpochOfData(TrainerCallback):
    """Tells a :class:`NumberedDataset` which epoch begins."""

    def __init__(self, data: NumberedDataset):
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.data.start_epoch(int(state.epoch or 0), args.seed)
