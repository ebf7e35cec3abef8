"""CSV, TSV, JSON and JSON lines files as columns: every cell as it was written, without guessing types."""

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
from pathlib import Path
from typing import Any

from itrd_nlp.utils.errors import UserError, one_line

DELIMITED = (".csv", ".tsv")
OBJECTS = (".json", ".jsonl", ".ndjson")
COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072

Columns = Mapping[str, list[Any]]


def suffix_of(path: Path) -> str:
    """A file's extension in lower case, without that of its compression."""
    name = path.name.lower()
    return Path(Path(name).stem if Path(name).suffix in COMPRESSED else name).suffix


def read_plain(path: Path, suffix: str) -> Columns:
    """Read the columns of a CSV, TSV, JSON or JSON lines file, which may be compressed.

    JSON is a list of objects, an object on each line, ``{"data": [...]}``, the columns that pandas writes, or SQuAD's
    own layout.

    Args:
        path: the file.
        suffix: one of ``DELIMITED`` and ``OBJECTS``, see :func:`suffix_of`; a downloaded file has none in its name.

    Raises:
        UserError: an invalid file; the message names the row or line where there is one.
    """
    expected = f"valid {suffix[1:]}"
    text = _read_text(path, expected)
    try:
        return _delimited(text, path, suffix) if suffix in DELIMITED else _objects(text, path, suffix)
    except (csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"file '{path}' is not {expected}: {one_line(error)}") from error


def read_lines(path: Path) -> list[str]:
    """Read a text file, which may be compressed: a text a line, without blank ones.

    Raises:
        UserError: a file that cannot be read, is not UTF-8, or holds no text.
    """
    texts = [line for line in _read_text(path, "text").splitlines() if line.strip()]
    if not texts:
        raise UserError(f"file '{path}' holds no text: expected one a line")
    return texts


def _read_text(path: Path, expected: str) -> str:
    """The content of a text file, which may be compressed; ``expected`` is what it should be, for messages."""
    try:
        with COMPRESSED.get(path.suffix.lower(), Path.open)(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"file '{path}' is not {expected}: {one_line(error)}; save it as UTF-8") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"file '{path}' cannot be read: {one_line(error)}") from error


def _delimited(text: str, path: Path, suffix: str) -> Columns:
    """The cells of a CSV or TSV file as texts, without blank lines."""
    limit = csv.field_size_limit(LONGEST_CELL)  # for the entire process: put back below
    try:
        delimiter = "\t" if suffix == ".tsv" else _delimiter(text, path)
        lines = _lines(text, delimiter)
    finally:
        csv.field_size_limit(limit)
    if not lines:
        return {}
    header = [name.strip() for name in lines[0][1]]
    named = [i for i, name in enumerate(header) if name]  # a column without a name is an index
    repeated = [name for name, count in Counter(header[i] for i in named).items() if count > 1]
    if repeated:
        raise UserError(f"file '{path}' has two columns called {repeated[0]!r}: expected each name once; rename one")
    for row, (number, cells) in enumerate(lines[1:]):
        if len(cells) != len(header):
            kind = "more" if len(cells) > len(header) else "fewer"
            raise UserError(
                f"row {row} of '{path}' has {kind} cells than the header: put texts with commas in double quotes "
                f"(line {number}: {len(cells)} cells, the header {len(header)})"
            )
    return {header[i]: [cells[i] for _, cells in lines[1:]] for i in named}


def _cells(text: str, delimiter: str, **options: Any) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not blank, with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, **options)
    return ((reader.line_num, cells) for cells in reader if cells)


def _lines(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """:func:`_cells`, with the quotes that the file means."""
    if delimiter == "\t" and (literal := _literal_rows(text)):
        return literal
    lines = list(_cells(text, delimiter))
    if any(cell.startswith(" ") and cell.lstrip(" ").startswith('"') for _, cells in lines[:2] for cell in cells):
        return list(_cells(text, delimiter, skipinitialspace=True))  # as in: "a", "b"
    return lines


def _literal_rows(text: str) -> list[tuple[int, list[str]]]:
    """The rows of a file with tabs where each line has as many cells as the header: a quote there is one of the text.

    Only a cell in quotes, with those inside doubled, is read without them. Empty where lines differ, as where a cell in
    quotes holds a tab or a line break, and where there is one column.
    """
    lines = list(_cells(text, "\t", quoting=csv.QUOTE_NONE))
    width = len(lines[0][1]) if lines else 0
    if width < 2 or any(len(cells) != width for _, cells in lines):
        return []
    return [(number, [_without_quotes(cell) for cell in cells]) for number, cells in lines]


def _without_quotes(cell: str) -> str:
    """A cell without the quotes around it, unless one inside says that they are the text's own."""
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if is_quoted else cell


def _delimiter(text: str, path: Path) -> str:
    """Comma, semicolon or tab: the one that splits the header and gives each of the first rows as many cells."""
    even = {}
    for delimiter in ",;\t":
        try:
            counts = [len(cells) for _, (_, cells) in zip(range(100), _cells(text, delimiter), strict=False)]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            even[delimiter] = len({*counts}) == 1
    candidates = [delimiter for delimiter in even if even[delimiter]] or list(even)
    if len(candidates) > 1:
        raise UserError(
            f"file '{path}' can be split at {' and at '.join(map(repr, candidates))}: put names and texts with either "
            "in double quotes"
        )
    return candidates[0] if candidates else ","


def _objects(text: str, path: Path, suffix: str) -> Columns:
    """The columns of JSON in any of the layouts of :func:`read_plain`."""
    if not text.strip():
        return {}
    if text.lstrip()[0] != "[" and (suffix != ".json" or _starts_with_a_value(text)):
        return _columns(_json_lines(text, path), path)
    content = _parsed(text, path)
    if isinstance(content, list):
        return _columns(content, path)
    if isinstance(content, dict) and content and all(isinstance(cells, dict) for cells in content.values()):
        indices = [list(cells) for cells in content.values()]  # DataFrame.to_json: column -> index -> cell
        if indices[0] and all(index == indices[0] for index in indices):
            return {name: list(cells.values()) for name, cells in content.items()}
    if "\n" not in text.strip() and _is_row(content):
        return _columns([content], path)  # an object on each line, of which there is one
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(
            f"file '{path}': expected a list of objects, an object on each line, or SQuAD's data > paragraphs > qas, "
            f"found {content!r:.40}"
        )
    nested = any(isinstance(row, dict) and "paragraphs" in row for row in rows)
    return _columns(_squad_rows(rows, path) if nested else rows, path)


def _is_row(content: Any) -> bool:
    """Whether a JSON value is an object that holds a text, or words, itself."""
    if not isinstance(content, dict) or "data" in content:
        return False
    firsts = [cell[0] if isinstance(cell, list) and cell else cell for cell in content.values()]
    return any(isinstance(each, str) for each in firsts)


def _squad_rows(articles: list[Any], path: Path) -> list[dict[str, Any]]:
    try:
        return [
            {
                "id": question["id"],
                "question": question["question"],
                "context": paragraph["context"],
                "answers": question.get("answers"),
                "is_impossible": question.get("is_impossible"),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"file '{path}' is neither a list of rows nor data > paragraphs > qas > (id, question): {error}"
        ) from error


def _starts_with_a_value(text: str) -> bool:
    """Whether the first of several lines is a complete JSON value, as `Dataset.to_json` writes."""
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return bool(rest)


def _json_lines(text: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_parsed(line, path))
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of '{path}' is not valid json: {one_line(error)}") from error
    return rows


def _parsed(text: str, path: Path) -> Any:
    """The JSON value of a text; an object that repeats a name is refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise UserError(f"file '{path}' has an object with two values for {name!r}: expected each name once")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _columns(rows: list[Any], path: Path) -> Columns:
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {i} of '{path}': expected an object, found {row!r:.40}")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
