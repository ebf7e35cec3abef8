"""What a cell of a label column says, in every form that people write: names, numbers, lists, lists as text."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError

# a quoted text with escapes, or what is bare: a number or a word of Python's
ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\]()]+""")
GAP = re.compile(r"\s*,\s*|\s+|$")
UNLABELLED = {"-1", "-100"}  # what data sets write for a label that is not known, or not told
NUMBER = re.compile(r"-?\d+")
WHOLE = re.compile(r"-?\d+\.0+")
NUMBERS = re.compile(r"\s*[\d.]+(\s+[\d.]+)+\s*")
BARE = {"True": True, "False": False, "true": True, "false": False, "None": None, "null": None, "nan": None}
BRACKETS, BLANKS = ("[]", "()"), r"\s+"


def is_bracketed(text: str) -> bool:
    """Whether a text is written as a list."""
    text = text.strip()
    return text[:1] + text[-1:] in BRACKETS


def parse_list(text: str) -> list[Any]:
    """The items of a list that was written as text.

    Args:
        text: JSON, a flat Python literal, or what numpy prints, whose items have blanks between them.

    Raises:
        ValueError: none of these. Python itself would join ``['a' 'b']``, which numpy prints of two items, into one.

    Example:
        >>> parse_list('["a", "b"]'), parse_list("['a', 'b']"), parse_list("['a' 'b']"), parse_list("[1 0 3]")
        (['a', 'b'], ['a', 'b'], ['a', 'b'], [1, 0, 3])
    """
    try:
        made = json.loads(text)
    except ValueError:
        made = _items(text.strip())
    if not isinstance(made, list):
        raise ValueError("no list")
    return made


def _items(text: str) -> list[Any]:
    if not is_bracketed(text):
        raise ValueError("no brackets")
    inner, items, marks, place = text[1:-1].strip(), [], set(), 0
    while place < len(inner):
        found = ITEM.match(inner, place)
        if found is None:
            raise ValueError(f"no item at {inner[place:][:20]!r}")
        items.append(_value(found[0]))
        gap = GAP.match(inner, found.end())
        if gap is None:  # two items at once
            raise ValueError(f"nothing between items at {inner[found.start() :][:20]!r}")
        place = gap.end()
        if place < len(inner):
            marks.add("," if "," in gap[0] else " ")
    if len(marks) > 1:
        raise ValueError("commas between some of the items")
    return items


def _value(item: str) -> Any:
    """An item of a list: a quoted text, a number, or a word of Python's or JSON's."""
    if item[0] in "'\"":
        return ast.literal_eval(item)
    if item in BARE:
        return BARE[item]
    try:
        return int(item)
    except ValueError:
        return float(item)  # numpy's "1." too; the three dots of a long list are none


def items_of(cell: Any, row: int, source: str, kind: str, parted: str = BLANKS) -> list[Any]:
    """The items of a cell: of a list, of one as text, or the parts of a text; none of a missing or empty one.

    Args:
        kind: what they are, for the message.
        parted: between the items of a text that is no list.

    Raises:
        UserError: brackets that cannot be read, or lists in a list.
    """
    if cell is None or cell == "" or cell != cell:
        return []
    if isinstance(cell, str):
        if is_bracketed(cell) or cell.strip().startswith(("[", "{", "array(")):
            try:
                cell = parse_list(cell)
            except (ValueError, SyntaxError):
                raise UserError(
                    f"row {row} of '{source}' has the {kind} {cell!r:.60}: expected a list such as "
                    f'["a", "b"], or {kind} with {"blanks" if parted == BLANKS else "|"} between them'
                ) from None
        else:
            cell = [part for part in re.split(parted, cell.strip()) if part]
    items = list(cell) if isinstance(cell, Sequence) else [cell]
    if any(isinstance(item, list | tuple | dict) for item in items) or isinstance(cell, dict):
        raise UserError(f"row {row} of '{source}' has the {kind} {cell!r:.60}: expected a flat list")
    return items


def name_of(value: Any, rows: Rows, row: int) -> str | None:
    """The class that a value names; None: none.

    A number of declared classes is a place among them, and a negative one says that there is no label. Blanks around
    a name do not count, nor does the ``.0`` that missing values add to whole numbers.
    """
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, str):
        name = value.strip()
        if rows.declared and name in rows.declared:
            return name
    elif isinstance(value, bool):
        name = str(value)
    elif isinstance(value, float | int):
        name = str(int(value)) if float(value).is_integer() else str(value)
    else:
        raise UserError(f"row {row} of '{rows.source}' has the label {value!r:.60}: expected a name or a number")
    if WHOLE.fullmatch(name):
        name = name.partition(".")[0]
    if rows.declared and NUMBER.fullmatch(name):
        if name in UNLABELLED:
            return None
        if not 0 <= int(name) < len(rows.declared):
            raise UserError(
                f"row {row} of '{rows.source}' has the class {name}: expected 0 to {len(rows.declared) - 1}"
            )
        return rows.declared[int(name)]
    return name or None


def class_in(rows: Rows, row: int, value: Any) -> str | None:
    """The class of a cell; :class:`UserError` for several."""
    if isinstance(value, str) and is_bracketed(value):
        with contextlib.suppress(ValueError, SyntaxError):  # a name in brackets
            value = parse_list(value)
    if isinstance(value, list | tuple):
        raise UserError(
            f"row {row} of '{rows.source}' has a list of classes, {value!r:.60}: expected one class; for any number of "
            "them use --task multilabel"
        )
    return name_of(value, rows, row)


def classes_in(rows: Rows, row: int, cell: Any) -> list[Any] | None:
    """The items of a cell, numbers as such even where they were written as text; None where it says "no label"."""
    parted = BLANKS if isinstance(cell, str) and NUMBERS.fullmatch(cell) else r"\s*[|;,]\s*"
    items = [item for item in items_of(cell, row, rows.source, "labels", parted) if item not in (None, "")]
    if all(isinstance(item, str) and re.fullmatch(r"-?\d+(\.0+)?", item) for item in items):
        items = [int(float(item)) for item in items]
    if items and all(not isinstance(item, str) and str(item).removesuffix(".0") in UNLABELLED for item in items):
        return None
    return items


def score_in(rows: Rows, row: int, value: Any) -> float | None:
    """A cell's number; None of an empty one."""
    given = value
    if rows.declared:
        value = name_of(value, rows, row)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        made = float(value) if not isinstance(value, bool) and "_" not in str(value) else math.nan
    except (TypeError, ValueError):
        made = math.nan
    if not math.isfinite(made):
        raise UserError(f"row {row} of '{rows.source}' has the score {given!r}: expected a number; see --label_column")
    return made


def tags_in(rows: Rows, row: int, cell: Any) -> list[str] | None:
    """The tags of a cell; None where it is empty, or says "no label" of all its words."""
    items = items_of(cell, row, rows.source, "tags")
    numbers = [str(item) for item in items if isinstance(item, int | float)]
    if not items or (len(numbers) == len(items) and {*numbers} <= UNLABELLED):
        return None
    names = [None if isinstance(item, bool) else name_of(item, rows, row) for item in items]
    if None in names or UNLABELLED & {*names}:
        odd = next(item for item, name in zip(items, names, strict=True) if name is None or name in UNLABELLED)
        raise UserError(
            f"row {row} of '{rows.source}' has the tag {odd!r} for a word: expected a tag for each, or none"
        )
    return [name for name in names if name]
