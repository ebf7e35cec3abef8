"""What a cell of a label column says, in every form that people write: names, numbers, lists, lists as text."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from itrd_nlp.utils.errors import UserError

if TYPE_CHECKING:
    from itrd_nlp.tasks.rows import Rows  # its import of `datasets` takes long

UNLABELLED = {"-1", "-100"}  # what data sets write for an unknown or hidden label
NUMBER = re.compile(r"-?\d+")
WHOLE = re.compile(r"(-?\d+)(\.0+)?")  # missing values make floats of whole numbers
SEVERAL_NUMBERS = re.compile(r"\s*[\d.]+(\s+[\d.]+)+\s*")
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""  # a text with escapes
ITEM = re.compile(rf"""{QUOTED}|[^\s,'"\[\]()]+""")  # of a list: a quoted text, or a bare number or word
# numpy's scalars, as Python prints them: np.int64(3), np.str_('a'), np.True_; texts in quotes stay
SCALAR = re.compile(rf"({QUOTED})|\bnp\.(True|False)_|\bnp\.\w+\(({QUOTED}|[^()'\"]*)\)")
CONSTANTS = {"True": True, "False": False, "true": True, "false": False, "None": None, "null": None, "nan": None}
BLANKS = r"\s+"  # between the items of a text that is not a list
MARKS = ("|", ";", ",")  # between classes


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty, blank or NaN."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell)


def is_bracketed(text: str) -> bool:
    """Whether a text is written as a list."""
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "()")


def without_numpy(text: str) -> str:
    """A list or mapping that Python printed, with its own values in place of numpy's.

    Example:
        >>> without_numpy("[np.int64(1), np.str_('a'), np.True_, 'np.int64(1)']")
        "[1, 'a', True, 'np.int64(1)']"
    """
    return SCALAR.sub(lambda match: match[1] or match[2] or match[3], text)


def parse_list(text: str) -> list[Any]:
    """Parse a list that was written as text.

    Args:
        text: JSON, a flat Python literal, or what numpy prints, with blanks between the items.

    Raises:
        ValueError: none of these. Python itself would join ``['a' 'b']``, which numpy prints for two items, into one.

    Example:
        >>> parse_list('["a", "b"]'), parse_list("['a', 'b']"), parse_list("['a' 'b']"), parse_list("[1 0 3]")
        (['a', 'b'], ['a', 'b'], ['a', 'b'], [1, 0, 3])
    """
    if not is_bracketed(text):
        raise ValueError("no brackets")
    with contextlib.suppress(ValueError):
        return json.loads(text)
    inner = without_numpy(text).strip()[1:-1].strip()
    before, *gaps = ITEM.split(inner)
    after = gaps.pop() if gaps else ""
    if (
        before
        or after.strip() not in ("", ",")
        or not (all(gap.isspace() for gap in gaps) or all(gap.strip() == "," for gap in gaps))
    ):
        raise ValueError("neither blanks nor commas between the items")
    return [_value(item) for item in ITEM.findall(inner)]


def _value(item: str) -> Any:
    if item[0] in "'\"":
        return ast.literal_eval(item)
    if item in CONSTANTS:
        return CONSTANTS[item]
    try:
        return int(item)
    except ValueError:
        return float(item)  # numpy's "1." too, but not the dots in the middle of a long array


def items_of(cell: Any, row: int, source: str, kind: str, separator: str = BLANKS) -> list[Any]:
    """The items of a list, of a list as text, or of a text with separators; none of a missing or empty cell.

    Args:
        kind: what the items are, for the message.
        separator: a pattern.

    Raises:
        UserError: brackets that cannot be parsed, or lists in a list.
    """
    if is_missing(cell):
        return []
    if isinstance(cell, str) and (is_bracketed(cell) or cell.strip().startswith(("[", "{", "array("))):
        try:
            cell = parse_list(cell)
        except (ValueError, SyntaxError):
            between = "blanks" if separator == BLANKS else "|"
            raise UserError(
                f"row {row} of '{source}' has the {kind} {cell!r:.60}: expected a list such as "
                f'["a", "b"], or {kind} with {between} between them'
            ) from None
    elif isinstance(cell, str):
        cell = [part for part in re.split(separator, cell.strip()) if part]
    items = list(cell) if isinstance(cell, Sequence) else [cell]
    if any(isinstance(item, list | tuple | dict) for item in items):
        raise UserError(f"row {row} of '{source}' has the {kind} {cell!r:.60}: expected a flat list")
    return items


def name_of(value: Any, rows: Rows, row: int) -> str | None:
    """The class that a value names, or None.

    A number indexes the declared classes, where there are any; a negative one says that there is no label. Blanks
    around a name do not count, nor does the ``.0`` of whole numbers.
    """
    if is_missing(value):
        return None
    if not isinstance(value, str | bool | float | int):
        raise UserError(f"row {row} of '{rows.source}' has the label {value!r:.60}: expected a name or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    declared, name = rows.declared or [], str(value).strip()
    if isinstance(value, str) and name in declared:
        return name
    if match := WHOLE.fullmatch(name):
        name = match[1]
    if declared and NUMBER.fullmatch(name):
        if name in UNLABELLED:
            return None
        if not 0 <= int(name) < len(declared):
            raise UserError(f"row {row} of '{rows.source}' has the class {name}: expected 0 to {len(declared) - 1}")
        return declared[int(name)]
    return name


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


def mark_in(cells: Iterable[Any], source: str) -> str:
    """What stands between the classes of texts that are not lists: a bar, else the only other one of ``MARKS``.

    Raises:
        UserError: no bar, and two of the others.
    """
    texts = [cell for cell in cells if isinstance(cell, str) and not is_bracketed(cell)]
    marks = [mark for mark in MARKS if any(mark in text for text in texts)] or [MARKS[0]]
    if len(marks) > 1 and marks[0] != MARKS[0]:
        raise UserError(
            f"the labels of '{source}' hold both {marks[0]!r} and {marks[1]!r}: expected one of them between names; "
            'put | between them, or write lists such as ["a", "b"]'
        )
    return marks[0]


def classes_in(rows: Rows, row: int, cell: Any, mark: str) -> list[str] | None:
    """The classes of a cell, or the numbers of a vector, True as 1; None where they say "no label".

    Args:
        mark: of :func:`mark_in`.
    """
    is_vector = isinstance(cell, str) and SEVERAL_NUMBERS.fullmatch(cell)
    separator = BLANKS if is_vector else rf"\s*{re.escape(mark)}\s*"
    items = [item for item in items_of(cell, row, rows.source, "labels", separator) if item != ""]
    present = [item for item in items if not is_missing(item)]
    if items and not present:
        return None
    if len(present) < len(items):  # left out, the others of a vector would be numbers of classes
        raise UserError(f"row {row} of '{rows.source}' has the labels {cell!r:.60}: expected none of them missing")
    names = [name_of(int(item) if isinstance(item, bool) else item, rows, row) for item in present]
    if present and all(name is None or name in UNLABELLED for name in names):
        return None
    return [name for name in names if name]


def number_in(value: Any) -> float:
    """A number, or one as text; NaN of anything else, such as 1_0, which Python would read."""
    if isinstance(value, bool) or "_" in str(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def score_in(rows: Rows, row: int, cell: Any) -> float | None:
    """The number of a cell; None of an empty one."""
    value = name_of(cell, rows, row) if rows.declared else cell
    if value is None or is_missing(value):
        return None
    score = number_in(value)
    if not math.isfinite(score):
        raise UserError(f"row {row} of '{rows.source}' has the score {cell!r}: expected a number; see --label_column")
    return score


def tags_in(rows: Rows, row: int, cell: Any) -> list[str] | None:
    """The tags of a cell; None where it is empty, or says "no label" for all of its words."""
    items = items_of(cell, row, rows.source, "tags")
    if all(isinstance(item, int | float) and str(item) in UNLABELLED for item in items):
        return None
    tags = []
    for item in items:
        tag = None if isinstance(item, bool) else name_of(item, rows, row)
        if tag is None or tag in UNLABELLED:
            raise UserError(
                f"row {row} of '{rows.source}' has the tag {item!r} for a word: expected a tag for each, or none"
            )
        tags.append(tag)
    return tags
