"""``itrd score``: EM and F1 of predictions in a file."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", required=True, type=Path, help="JSON of question id to answer text")
    parser.add_argument("--data", required=True, help="SQuAD JSON, CSV, parquet or JSON lines")


def run(args: Namespace, rest: list[str]) -> None:
    """Print exact match and F1 of a file of predictions."""
    from itrd_nlp.tasks.question_answering.scores import read_predictions, squad_scores

    predictions = read_predictions(args.predictions)
    golds = _clean_answers(args.data)
    if not golds:  # load_squad repairs a file, warns of what it finds, or says what is wrong with it
        from itrd_nlp.tasks.question_answering.data import load_squad

        golds = {row["id"]: row["answers"]["text"] for row in load_squad(validation_file=args.data).validation or ()}
    scores = squad_scores(predictions, golds)
    for name, value in scores.items():
        print(f"{name}: {value}" if isinstance(value, int) else f"{name}: {value:.3f}")


def _clean_answers(file: str) -> dict[str, list[str]]:
    """Gold answers by question id of a text file in which nothing needs repair or a warning; empty for other files.

    This path does without `datasets`, whose import takes longer than scoring.
    """
    from itrd_nlp.tasks.plain_files import DELIMITED, OBJECTS, read_plain, suffix_of
    from itrd_nlp.tasks.question_answering.gold_answers import read_answers

    path = Path(file)
    if not path.is_file() or suffix_of(path) not in (*DELIMITED, *OBJECTS):
        return {}
    columns = read_plain(path, suffix_of(path))
    if not {"id", "question", "context", "answers"} <= columns.keys():
        return {}
    golds: dict[str, list[str]] = {}
    for index, cells in enumerate(zip(*columns.values(), strict=True)):
        row = dict(zip(columns, cells, strict=True))
        answers = read_answers(row, f"row {index} of '{file}'")
        if row["id"] in golds or not _is_clean(row, answers):
            return {}
        golds[row["id"]] = [text for text, _ in answers]
    return golds


def _is_clean(row: dict[str, Any], answers: list[tuple[str, int | None]]) -> bool:
    """Whether every cell has the expected type and every answer is in the context at its offset."""
    return (
        all(isinstance(row[name], str) for name in ("id", "question", "context"))
        and isinstance(row["answers"], str | list | dict)
        and row["answers"] != ""
        and all(start is not None and start >= 0 and row["context"].startswith(text, start) for text, start in answers)
    )


SCORE = Command(
    "score",
    "EM and F1 of SQuAD-format predictions",
    (
        "itrd score --predictions predictions.json --data dev-v1.1.json",
        "itrd score --predictions predictions.json --data held-out.csv",
    ),
    run,
    arguments,
)
