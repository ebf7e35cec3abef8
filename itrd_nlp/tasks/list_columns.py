"""Columns of numbers, or of lists of numbers, in a dataset as arrays: without a Python object for each number."""

from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
from datasets import Column

BATCH = 10_000  # rows


def array_of(cells: Any, count: int) -> np.ndarray | None:
    """The numbers of a column, or None where its rows must be read one by one.

    Args:
        cells: of each row. Only those of a dataset are read: lists of numbers, or numbers alone where ``count`` is 1.
        count: numbers of a row.

    Returns:
        (rows, count) fp32; None where a row has others than ``count`` finite numbers, or there are no such types.
    """
    if not isinstance(cells, Column):
        return None
    name, table, start = cells.column_name, np.empty((len(cells), count), np.float32), 0
    for batch in cells.source.select_columns(name).with_format("arrow").iter(BATCH):
        values = _values(batch[name], count)
        if values is None or not np.isfinite(values).all():
            return None
        stop = start + len(batch[name])
        table[start:stop] = values.reshape(-1, count)
        start = stop
    return table


def _values(column: Any, count: int) -> np.ndarray | None:
    """All numbers of an Arrow column, in a row; None where it holds no ``count`` of them in each of its rows."""
    types = pyarrow.types
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()  # of a missing list None
        if lengths != [count]:
            return None
        column = pc.list_flatten(column)
    elif count != 1:
        return None
    if column.null_count or not (types.is_floating(column.type) or types.is_integer(column.type)):
        return None
    return column.cast(pyarrow.float32(), safe=False).to_numpy()
