"""CSV, TSV, JSON and JSON lines as rows of a table: every cell as it was written, and no type is guessed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itrd_nlp.utils.errors import UserError, first_line

DELIMITED = (".csv", ".tsv")
OBJECTS = (".json", ".jsonl", ".ndjson")
COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072

Columns = Mapping[str, list[Any]]
Layout = Callable[[Any, Path], list[dict[str, Any]]]  # rows of a JSON object that has a task's own layout


def suffix_of(path: Path) -> str:
    """The ending that tells the form of a file, in small letters, without that of its compression."""
    name = path.name.lower()
    return Path(Path(name).stem if Path(name).suffix in COMPRESSED else name).suffix


def read_plain(path: Path, suffix: str, layout: Layout | None = None) -> Columns:
    """The columns of a CSV, TSV, JSON or JSON lines file, which may be compressed.

    Args:
        path: the file.
        suffix: one of ``DELIMITED`` and ``OBJECTS``, as :func:`suffix_of` has it.
        layout: what makes rows of a JSON object of a task's own layout, such as SQuAD's; None: there is none.

    Raises:
        UserError: what is not of that form; the message names the row or the line where there is one.
    """
    try:
        opened = COMPRESSED.get(path.suffix.lower(), Path.open)(path, "rb")
        with opened as file:
            text = file.read().decode("utf-8-sig")
        return _delimited(text, path, suffix) if suffix in DELIMITED else _objects(text, path, suffix, layout)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        advice = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"file '{path}' is not valid {suffix[1:]}: {first_line(error)}{advice}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"file '{path}' cannot be read: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"file '{path}' is not valid {suffix[1:]}: it is nested too deeply") from error


def _delimited(text: str, path: Path, suffix: str) -> Columns:
    """The cells of a CSV or TSV file, all of them texts; a line without any cell is left out."""
    with _long_cells():
        mark = "\t" if suffix == ".tsv" else _delimiter(text, path)
        lines = _rows(text, mark)
        if any(cell.startswith(" ") and cell.lstrip(" ").startswith('"') for _, cells in lines[:2] for cell in cells):
            lines = _rows(text, mark, skipinitialspace=True)  # quotes after a blank are quotes
    if not lines:
        return {}
    header = [name.strip() for name in lines[0][1]]
    named = [i for i, name in enumerate(header) if name]  # one without a name is an index, or a delimiter too many
    twice = [name for name, count in Counter(header[i] for i in named).items() if count > 1]
    if twice:
        raise UserError(f"file '{path}' has two columns called {twice[0]!r}: expected each name once; rename one")
    for row, (number, cells) in enumerate(lines[1:]):
        if len(cells) != len(header):
            kind = "more" if len(cells) > len(header) else "fewer"
            raise UserError(
                f"row {row} of '{path}' has {kind} cells than the header: put texts with commas in double quotes "
                f"(line {number}: {len(cells)} cells, the header {len(header)})"
            )
    return {header[i]: [cells[i] for _, cells in lines[1:]] for i in named}


def _rows(text: str, mark: str, **options: Any) -> list[tuple[int, list[str]]]:
    """The number of the line that ends each row, and its cells."""
    extractor = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark, **options)
    return [(extractor.line_num, cells) for cells in extractor if cells]


def _delimiter(text: str, path: Path) -> str:
    """Comma, semicolon or tab: what parts the header, and where several do, each row into as many cells."""
    found = []
    for mark in ",;\t":
        try:
            rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
            first = [cells for _, cells in zip(range(100), rows, strict=False) if cells]
        except csv.Error:
            continue
        if first and len(first[0]) > 1:
            found.append((mark, all(len(cells) == len(first[0]) for cells in first)))
    even = [mark for mark, same in found if same] or [mark for mark, _ in found]
    if len(even) > 1:
        raise UserError(
            f"file '{path}' can be parted by {' and by '.join(map(repr, even))}: put names and texts with either in "
            "double quotes"
        )
    return even[0] if even else ","


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lift the csv module's limit, which is one for the whole process, for a while."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _objects(text: str, path: Path, suffix: str, layout: Layout | None) -> Columns:
    """The rows of JSON lines, of a list of objects, of a task's own layout, or of what pandas writes."""
    if not text.strip():
        return {}
    if text.lstrip()[0] != "[" and (suffix != ".json" or _are_lines(text)):
        return _columns(_lines(text, path), path)
    content = _parsed(text, path)
    if isinstance(content, list):
        return _columns(content, path)
    if isinstance(content, dict) and content and all(isinstance(cells, dict) for cells in content.values()):
        keys = [list(cells) for cells in content.values()]  # DataFrame.to_json: column -> index -> cell
        if keys[0] and all(key == keys[0] for key in keys):
            return {name: list(cells.values()) for name, cells in content.items()}
    rows = content.get("data") if isinstance(content, dict) else None
    if isinstance(rows, list) and rows and not any(isinstance(row, dict) and "paragraphs" in row for row in rows):
        return _columns(rows, path)
    if layout is not None:
        return _columns(layout(content, path), path)
    raise UserError(f"file '{path}': expected a list of objects, or an object on each line, found {content!r:.40}")


def _are_lines(text: str) -> bool:
    """Whether a text's first line is a whole JSON value and others follow, as `Dataset.to_json` writes."""
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return bool(rest)


def _lines(text: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_parsed(line, path))
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of '{path}' is not valid json: {first_line(error)}") from error
    return rows


def _parsed(text: str, path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise UserError(f"file '{path}' has an object with two values for {twice!r}: expected each name once")
        return made

    return json.loads(text, object_pairs_hook=once)


def _columns(rows: list[Any], path: Path) -> Columns:
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {i} of '{path}': expected an object, found {row!r:.40}")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
