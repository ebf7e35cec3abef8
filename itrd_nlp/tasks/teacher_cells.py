"""What a cell says of a teacher's outputs: a list of numbers, or the probabilities of classes."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from itrd_nlp.models.classes import Places, listed
from itrd_nlp.tasks.cells import is_bracketed, parse_list
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError, nearest

PROBS = "teacher_probs"
TOLERANCE = 0.01  # of a sum of probabilities, which may be rounded


def is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell)


def wrong(rows: Rows, column: str, row: int, cell: Any, expected: str) -> UserError:
    value = "nothing" if is_missing(cell) else f"{cell!r:.60}"
    return UserError(f"row {row} of '{rows.source}' has {value} as {column}: expected {expected}")


def list_in(rows: Rows, column: str, row: int, cell: Any) -> list[Any]:
    """The items of a list, or of a list as text."""
    if isinstance(cell, str) and is_bracketed(cell):
        with contextlib.suppress(ValueError, SyntaxError):
            cell = parse_list(cell)
    if not isinstance(cell, list | tuple | np.ndarray) or not len(cell):
        raise wrong(rows, column, row, cell, "a list such as [0.5, -1.2], in CSV as JSON")
    return list(cell)


def numbers_in(rows: Rows, column: str, row: int, cell: Any, count: int, what: str) -> list[float]:
    """``count`` finite numbers of a cell; a number alone is a list of one."""
    single = count == 1 and not (isinstance(cell, list | tuple) or (isinstance(cell, str) and is_bracketed(cell)))
    items = [cell] if single else list_in(rows, column, row, cell)
    if len(items) != count:
        raise wrong(rows, column, row, cell, f"{count} numbers ({what}), found {len(items)}")
    numbers = [number_in(item) for item in items]
    if not all(map(math.isfinite, numbers)):
        raise wrong(rows, column, row, cell, f"finite numbers ({what})")
    return numbers


def number_in(value: Any) -> float:
    """A number, or one as text; NaN of anything else."""
    if isinstance(value, bool):
        return math.nan
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return math.nan


def mapping_in(cell: Any) -> dict[str, Any] | None:
    """A cell that maps classes to probabilities, without the empty ones that parquet adds; None for a list."""
    if isinstance(cell, str) and cell.strip().startswith("{"):
        for parse in (json.loads, ast.literal_eval):  # as Python prints it
            with contextlib.suppress(ValueError, SyntaxError):
                cell = parse(cell)
                break
    return {str(k): v for k, v in cell.items() if v is not None} if isinstance(cell, Mapping) else None


class Probabilities:
    """Reads one row's probabilities in the order of its teacher's classes, and counts the rows that name only some."""

    def __init__(self, rows: Rows, names: Sequence[str], independent: bool):
        self.rows, self.names, self.independent = rows, names, independent
        self.places = Places(names, numbered=True)
        self.partial = 0

    def read(self, row: int, cell: Any) -> list[float]:
        """The probability of each class."""
        named = mapping_in(cell)
        if named is None:
            p = numbers_in(self.rows, PROBS, row, cell, len(self.names), listed(self.names))
        else:
            p = self._spread(row, cell, named)
        total = sum(p)
        if min(p) < 0 or max(p) > 1 + TOLERANCE:
            raise wrong(self.rows, PROBS, row, cell, "probabilities from 0 to 1")
        if not self.independent and abs(total - 1) > TOLERANCE:
            raise wrong(self.rows, PROBS, row, cell, f"a sum of 1 (within {TOLERANCE}), found {total:.4g}")
        return p

    def _spread(self, row: int, cell: Any, named: Mapping[str, Any]) -> list[float]:
        """The probabilities of a mapping, with what they leave spread over the classes that it does not name."""
        p: list[float | None] = [None] * len(self.names)
        for name, value in named.items():
            index = self.places[name.strip()]
            if index is None or p[index] is not None:
                hint = nearest(name, self.names) if index is None else ""
                raise wrong(self.rows, PROBS, row, cell, f"each class once: {listed(self.names)}{hint}")
            p[index] = number_in(value)
        given = [value for value in p if value is not None]
        if not given or not all(map(math.isfinite, given)):
            raise wrong(self.rows, PROBS, row, cell, 'finite numbers, such as {"good": 0.9}')
        others = len(p) - len(given)
        self.partial += others > 0
        rest = 0.0 if self.independent or not others else max(0.0, 1 - sum(given)) / others
        return [rest if value is None else value for value in p]

    def notes(self) -> list[str]:
        """What was done to rows that do not name all classes."""
        if not self.partial:
            return []
        doing = "the others are 0" if self.independent else "the rest spread evenly over the others"
        return [f"{PROBS} name some classes in {self.partial:,} rows, {doing}"]
