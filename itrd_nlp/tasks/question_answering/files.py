"""SQuAD's own files: questions below paragraphs below articles, and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itrd_nlp.utils.errors import UserError, first_line, reading


def read_predictions(file: str | Path) -> dict[str, str]:
    """Predictions in SQuAD's format, a JSON object of question id to answer text; raises :class:`UserError`."""
    path = Path(file)
    with reading(path, "a JSON object of question id to answer text"):
        text = path.read_text(encoding="utf-8-sig")
    try:
        predictions = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"file '{file}' is not valid json: {first_line(error)}") from error
    if not isinstance(predictions, dict) or not all(isinstance(text, str) for text in predictions.values()):
        raise UserError(f"file '{file}' holds no predictions: expected a JSON object of question id to answer text")
    return predictions


def official_rows(content: Any, path: Path) -> list[dict[str, Any]]:
    """The questions of SQuAD's own layout: data, paragraphs, qas."""
    try:
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
