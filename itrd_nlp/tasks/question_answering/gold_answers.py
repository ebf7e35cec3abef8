"""The gold answers of a question, in every form that files and data sets give them, and their offsets."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from itrd_nlp.tasks.cells import is_bracketed, is_missing, without_numpy
from itrd_nlp.utils.errors import UserError

YES, NO = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "none", "nan")
EXPECTED = '{"text": ["..."], "answer_start": [0]}'
FLAT = ("answer_text", "answer")  # columns that hold a single answer
ARRAY = re.compile(r"\barray\((\[.*?\])(?:,\s*dtype=\w+)?\)", re.DOTALL)  # as pandas writes NumPy's into CSV

Pairs = list[tuple[str, int | None]]


def read_answers(values: Mapping[str, Any], where: str) -> Pairs:
    """Read the text and offset (None: unknown) of each gold answer of a row; none where it has no answer.

    A row has no answer where ``is_impossible`` says so, or where no answer has a text: ``[]``, ``None``, ``""``,
    ``{"text": [""], "answer_start": [-1]}``, ``[{"text": ""}]`` and the like.

    Args:
        values: the row's columns: ``answers`` as ``{"text": [...], "answer_start": [...]}``, as a list of
            ``{"text", "answer_start"}`` or of texts, or as one of these in a text (JSON, or as Python prints it);
            or ``answer_text`` (or ``answer``); ``answer_start`` of texts without offsets; and ``is_impossible``.
        where: the row, for messages.

    Raises:
        UserError: answers, an offset or ``is_impossible`` in an unknown form.
    """
    if is_impossible(values.get("is_impossible"), where):
        return []
    cell, start = answer_cell(values), values.get("answer_start")
    if is_missing(values.get("answers")) and not isinstance(cell, list | dict):  # the text itself, even with brackets
        cell = [{"text": cell, "answer_start": start}]
    try:
        cell = _parsed(cell) if isinstance(cell, str) else cell
        if isinstance(cell, list) and cell and not any(isinstance(each, dict) for each in cell):
            starts = start  # of texts without offsets of their own
            if isinstance(start, str) and is_bracketed(start):
                starts = _parsed(start)
            cell = {"text": cell, "answer_start": starts if isinstance(starts, list) else [starts] * len(cell)}
        pairs = [(_text(text), start) for text, start in _pairs(cell)]
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise UserError(f"{where}: answers {cell!r:.60} are not of the form {EXPECTED}") from error
    return [(text, _offset(start, where)) for text, start in pairs if text.strip()]


def answer_cell(values: Mapping[str, Any]) -> Any:
    """The first cell of ``answers``, ``answer_text`` and ``answer`` that holds something, else a blank one, or None."""
    cells = [values.get(name) for name in ("answers", *FLAT)]
    blank = next((cell for cell in cells if isinstance(cell, str)), None)
    return next((cell for cell in cells if not is_missing(cell)), blank)


def is_impossible(value: Any, where: str) -> bool:
    """Whether a cell of SQuAD 2.0's column says that there is no answer: a bool, 0 or 1, or one of these as a text."""
    word = str(value).strip().lower()
    if word not in (*YES, *NO):
        raise UserError(f"{where}: is_impossible is {value!r:.40}: expected true or false")
    return word in YES


def _parsed(cell: str) -> Any:
    """The answers in a text; one without brackets is an answer itself."""
    if not cell.strip().startswith(("[", "{")):
        return [cell]
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return ast.literal_eval(ARRAY.sub(r"\1", without_numpy(cell.strip())))


def _pairs(cell: Any) -> list[tuple[Any, Any]]:
    if is_missing(cell):
        return []
    if isinstance(cell, list):
        return [(x["text"], x.get("answer_start")) if isinstance(x, dict) else (x, None) for x in cell]
    texts, starts = cell["text"], cell.get("answer_start")
    if not isinstance(texts, list):
        return [(texts, starts[0] if isinstance(starts, list) and len(starts) == 1 else starts)]
    return list(zip(texts, [None] * len(texts) if starts is None else starts, strict=True))


def _text(value: Any) -> str:
    """A text as it is, a number as its context spells it, "" for a missing one."""
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():  # missing numbers make floats of the others
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise TypeError(f"{type(value).__name__} is not text")
    return str(value)


def _offset(value: Any, where: str) -> int | None:
    if is_missing(value):
        return None
    try:
        number = float(value)
        if not number.is_integer():
            raise ValueError(f"{value!r:.40}")
        return int(number)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: expected a whole number as answer_start ({error})") from error


def locate(context: str, text: str, start: int | None) -> tuple[str, int]:
    """Find an answer in its context: as the context spells it, and its offset in characters; -1 where it is not there.

    ``start`` may count characters, UTF-16 units (as JavaScript and Java do) or bytes of UTF-8. Where the answer is not
    at ``start``, its nearest occurrence counts, also with other whitespace. Without ``start`` it is the first one that
    does not begin or end within a word, or else the first.
    """
    if not text.strip():
        return text, -1
    if start is not None and start >= 0:
        for offset in _offsets(context, start):
            if context.startswith(text, offset):
                return text, offset
    near = max(start or 0, 0)
    for pattern in (re.escape(text), r"\s+".join(map(re.escape, text.split()))):
        matches = list(re.finditer(f"(?=({pattern}))", context))  # overlapping ones, too
        words = [match for match in matches if _is_whole(context, *match.span(1))] if start is None else []
        if matches:
            best = min(words or matches, key=lambda match: abs(match.start() - near))
            return best[1], best.start()
    return text, -1


def _is_whole(context: str, start: int, end: int) -> bool:
    """Whether context[start:end] neither begins nor ends within a word."""
    return not any(context[i - 1 : i].isalnum() and context[i : i + 1].isalnum() for i in (start, end) if i)


def _offsets(context: str, start: int) -> Iterable[int]:
    """An offset read as characters, as UTF-16 units and as bytes of UTF-8."""
    yield start
    if not context.isascii():
        for encoding, unit in (("utf-16-le", 2), ("utf-8", 1)):
            units = context.encode(encoding, "surrogatepass")[: start * unit]
            yield len(units.decode(encoding, "ignore"))
