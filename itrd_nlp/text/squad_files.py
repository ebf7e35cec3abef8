"""Files of questions as columns, whatever their form: SQuAD's own JSON, rows as JSON, JSON lines, CSV or parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from itrd_nlp.errors import UserError, first_line, nearest

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

Columns = Mapping[str, list[Any]]


def read_predictions(file: str | Path) -> dict[str, str]:
    """Predictions in SQuAD's format, a JSON object of question id to answer text; raises :class:`UserError`."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"file '{file}' does not exist: expected a JSON object of question id to answer text")
    try:
        predictions = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"file '{file}' is not valid json: {first_line(error)}") from error
    if not isinstance(predictions, dict) or not all(isinstance(text, str) for text in predictions.values()):
        raise UserError(f"file '{file}' holds no predictions: expected a JSON object of question id to answer text")
    return predictions


def read_file(file: str, what: str = "questions") -> Columns:
    """The columns of a file of any form that `load_squad` reads; raises :class:`UserError` that calls rows ``what``."""
    path = Path(file)
    if path.is_dir():
        raise UserError(f"file '{file}' is a folder: expected a file")
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, names) if names else f": there is no folder '{path.parent}' with files in it"
        raise UserError(f"file '{file}' does not exist{hint}")
    try:
        columns = _read(path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pyarrow.ArrowInvalid) as error:
        reason, advice = first_line(error), ""
        if reason.startswith("Extra data"):
            advice = "; a file with one object a line is named .jsonl"
        elif isinstance(error, UnicodeDecodeError):
            advice = "; save it as UTF-8"
        raise UserError(f"file '{file}' is not valid {path.suffix[1:]}: {reason}{advice}") from error
    if not any(columns.values()):
        raise UserError(f"file '{file}' holds no {what}: expected at least one")
    return columns


def _read(path: Path) -> Columns:
    match path.suffix.lower():
        case ".parquet":
            return pyarrow.parquet.read_table(path).to_pydict()
        case ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                header = file.readline()
                file.seek(0)
                parted = next((mark for mark in ",;\t" if mark in header), ",")  # as spreadsheets do in some countries
                return _columns(list(csv.DictReader(file, strict=True, delimiter=parted)), path)
        case ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            return _columns([json.loads(line) for line in lines if line.strip()], path)
        case ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            return _columns(content if isinstance(content, list) else _official_rows(content, path), path)
    raise UserError(f"file '{path}' ends in '{path.suffix}': expected one of {', '.join(SUFFIXES)}")


def _columns(rows: list[Any], path: Path) -> Columns:
    for row in rows:
        if not isinstance(row, dict):
            raise UserError(f"file '{path}': expected an object for each question, found {row!r:.40}")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _official_rows(content: Any, path: Path) -> list[dict[str, Any]]:
    """The questions of SQuAD's own layout: data, paragraphs, qas; or rows under ``data``, as many scripts read them."""
    try:
        if content["data"] and all("paragraphs" not in row for row in content["data"]):
            return list(content["data"])
        return [
            {
                "id": question["id"],
                "question": question["question"],
                "context": paragraph["context"],
                "answers": question.get("answers"),
                "is_impossible": question.get("is_impossible"),
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"file '{path}' is neither a list of rows nor data > paragraphs > qas > (id, question): {error}"
        ) from error
