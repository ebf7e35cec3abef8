"""``itrd predict``: answers or classes of a saved model."""

import json
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.commands.command import Command, check_parent
from itrd_nlp.errors import UserError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--question", help="one question, about --context")
    parser.add_argument("--context", help="the text that holds its answer")
    parser.add_argument("--text", help="a text for a model that classifies or scores")
    parser.add_argument("--text_pair", help="the second text, where it reads pairs")
    parser.add_argument("--file", help="SQuAD JSON, CSV, parquet or JSON lines with questions and contexts")
    parser.add_argument("--output", type=Path, help="where the predictions of --file go; stdout by default")
    parser.add_argument("--allow_no_answer", action="store_true", help="SQuAD 2: the text may hold no answer")


def run(args: Namespace, rest: list[str]) -> None:
    """Print the answer to a question, those of a file, or the class of a text."""
    if args.output is not None and args.file is None:
        raise UserError(f"predict: --output {args.output} without --file, whose predictions it takes; leave it out")
    if args.text is not None or args.text_pair is not None:
        _classify(args)
        return
    single = args.question is not None or args.context is not None
    if single == (args.file is not None) or (single and (args.question is None or args.context is None)):
        raise UserError("predict: expected either --question and --context, or --file; of a classifier --text")
    from itrd_nlp.text.answering import answer, answer_many
    from itrd_nlp.text.squad_data import read_questions

    if single:
        found = answer(args.model, args.question, args.context, allow_no_answer=args.allow_no_answer)
        finite = {k: v if isinstance(v, str | int) or math.isfinite(v) else None for k, v in found._asdict().items()}
        print(json.dumps(finite, ensure_ascii=False))
        return
    if args.output is not None:
        check_parent(args.output)
    data = read_questions(args.file)
    answers = answer_many(args.model, data["question"], data["context"], allow_no_answer=args.allow_no_answer)
    text = json.dumps(
        {key: found.text for key, found in zip(data["id"], answers, strict=True)}, ensure_ascii=False, indent=1
    )
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text + "\n", encoding="utf-8")


def _classify(args: Namespace) -> None:
    given = [name for name in ("question", "context", "file", "allow_no_answer") if getattr(args, name)]
    if args.text is None or given:
        beside = f"beside --{given[0]}" if given else "without --text"
        raise UserError(
            f"predict: --text or --text_pair {beside}: expected --text, and --text_pair where there are two"
        )
    from itrd_nlp.text.classification import classify

    print(json.dumps(classify(args.model, args.text, args.text_pair), ensure_ascii=False))


PREDICT = Command(
    "predict",
    "answer one question, or every question of a file; or classify a text",
    (
        'itrd predict runs/t6/student --question "Who wrote it?" --context "Ada wrote it."',
        "itrd predict runs/t6/student --file questions.csv --output predictions.json",
        'itrd predict runs/classify/l3-itrd/student --text "What a film!"',
        "itrd predict runs/t6/student --file dev-v2.0.json --allow_no_answer",
    ),
    run,
    arguments,
)
