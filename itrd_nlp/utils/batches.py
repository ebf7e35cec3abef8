"""Lengths of texts, and batches of a given number of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset

from itrd_nlp.utils.modeling import PAD_MULTIPLE

IGNORED = -100  # a label that torch's cross entropy leaves out


def padded_length(tokens: Any) -> Any:
    """The length to which collators pad so many tokens; of a number or an array."""
    return -(-tokens // PAD_MULTIPLE) * PAD_MULTIPLE


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the texts, longest first, in batches of at most ``budget`` tokens after padding.

    Example:
        >>> token_batches([8, 40, 8, 8, 16], budget=48)
        [[1], [4, 0, 2], [3]]
    """
    padded = padded_length(np.asarray(lengths))
    batches: list[list[int]] = []
    room = 0
    for index in np.argsort(-padded, kind="stable").tolist():
        if room < 1:
            batches.append([])
            room = max(1, budget // max(1, int(padded[index])))
        batches[-1].append(index)
        room -= 1
    return batches


def text_lengths(dataset: Any, column: str = "length") -> list[int] | None:
    """Tokens of each text of a ``datasets.Dataset``, from its ``column`` or counted; None where it has neither."""
    if not isinstance(dataset, Dataset):
        return None
    if column in dataset.column_names:
        return _column(dataset, column).to_pylist()
    if "input_ids" not in dataset.column_names:
        return None
    return pyarrow.compute.list_value_length(_column(dataset, "input_ids")).to_pylist()


def _column(dataset: Dataset, name: str) -> Any:
    """A column as Arrow holds it: read at once, which is hundreds of times faster than a value at a time."""
    return dataset.select_columns(name).with_format("arrow")[:][name]
