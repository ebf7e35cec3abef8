"""Lengths of texts, and batches that hold a number of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset

MULTIPLE = 8  # collators pad to it


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of the texts, longest first, cut into batches of at most ``budget`` tokens after padding.

    Example:
        >>> token_batches([8, 40, 8, 8, 16], budget=48)
        [[1], [4, 0, 2], [3]]
    """
    padded = -(-np.asarray(lengths) // MULTIPLE) * MULTIPLE
    batches: list[list[int]] = []
    room = 0
    for place in np.argsort(-padded, kind="stable").tolist():
        if room < 1:
            batches.append([])
            room = max(1, budget // max(1, int(padded[place])))
        batches[-1].append(place)
        room -= 1
    return batches


def text_lengths(dataset: Any, column: str = "length") -> list[int] | None:
    """Tokens of each text of a ``datasets.Dataset``: its ``column``, or counted; None where neither is possible."""
    if not isinstance(dataset, Dataset):
        return None
    if column in dataset.column_names:
        return [int(length) for length in dataset.with_format(None)[column]]
    if "input_ids" not in dataset.column_names:
        return None
    counts = pyarrow.compute.list_value_length(dataset.with_format("arrow")[:]["input_ids"])
    return counts.to_pylist()
