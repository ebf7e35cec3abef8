"""Training data that changes with the epochs, such as augmented images, and numbered examples."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Epoch(NamedTuple):
    """An epoch that begins, or continues after an interruption."""

    number: int  # from 0
    of: int  # how many there are
    seed: int  # of the run
    resumed: bool  # whether it continues


class ChangesWithEpochs:
    """Training data, or a module of the student, that ``training.loaders.EpochBegins`` notifies of each epoch."""

    def start_epoch(self, epoch: Epoch) -> None:
        """Prepare for an epoch, before its first batch or the first one after resuming."""


class NumberedDataset(ChangesWithEpochs, Dataset, ABC):
    """Examples that hold their index as ``itrd_nlp.losses.base.INDEX`` and may differ from epoch to epoch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at these indices; images: ``pixel_values`` (channels, height, width), ``labels``, ``INDEX``."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])[0]

    @abstractmethod
    def start_epoch(self, epoch: Epoch) -> None:
        """Prepare for an epoch: randomness depends on its number, the seed of the run and the example's index alone."""

    @abstractmethod
    def classes(self) -> Tensor:
        """(examples,) classes, as whole numbers."""

    @abstractmethod
    def digest(self) -> str:
        """Twelve hexadecimal digits of the examples and how they are made, whatever the seed."""


def numbering(data: Any) -> dict[str, Any]:
    """The number of ``examples`` of a training set and, where it knows them, their classes as ``labels``.

    Empty where batches cannot carry their examples' indices.
    """
    if isinstance(data, NumberedDataset):
        return {"examples": len(data), "labels": data.classes()}
    if not isinstance(data, datasets.Dataset) or data.format["type"] == "custom":
        return {}
    if (name := label_column(data)) is not None:
        column = data.select_columns(name).with_format("arrow")[:][name]
        if pyarrow.types.is_integer(column.type) and not column.null_count and pc.min(column).as_py() >= 0:
            return {"examples": len(data), "labels": torch.from_numpy(column.to_numpy().astype(np.int64))}
    return {"examples": len(data)}


def label_column(data: datasets.Dataset) -> str | None:
    """The column of the labels by either name that collators of transformers read; None where there is none."""
    return next((name for name in ("labels", "label") if name in data.column_names), None)
