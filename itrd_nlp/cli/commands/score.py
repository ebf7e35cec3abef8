"""``itrd score``: predictions that are there already."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", required=True, type=Path, help="JSON of question id to answer text")
    parser.add_argument("--data", required=True, help="SQuAD JSON, CSV, parquet or JSON lines")


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.tasks.question_answering.data import load_squad
    from itrd_nlp.tasks.question_answering.scores import read_predictions, squad_scores

    predictions = read_predictions(args.predictions)
    _, data, _ = load_squad(validation_file=args.data)
    assert data is not None  # a file was named
    scores = squad_scores(predictions, {row["id"]: row["answers"]["text"] for row in data})
    lines = [f"{name}: {value}" if isinstance(value, int) else f"{name}: {value:.3f}" for name, value in scores.items()]
    print("\n".join(lines))


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
