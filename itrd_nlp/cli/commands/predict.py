"""``itrd predict``: what a saved model says of texts and images."""

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itrd_nlp.cli.command import Command, check_parent, write_text
from itrd_nlp.utils.console import print_json
from itrd_nlp.utils.errors import UserError

OF_ANSWERS = ("allow_no_answer", "null_threshold", "doc_stride", "n_best", "max_answer_length")
OF_ROWS = ("text_column", "text_pair_column")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id, or what itrd export wrote")
    parser.add_argument("--question", help="one question, about --context")
    parser.add_argument("--context", help="the text that holds its answer")
    parser.add_argument("--text", help="a text to classify, score, tag or embed, by the model's head")
    parser.add_argument("--text_pair", help="the second text, where it reads pairs")
    parser.add_argument("--file", help="questions with contexts, or texts, as --validation_file; an image or a folder")
    parser.add_argument("--output", type=Path, help="where the predictions of --file go; stdout by default")
    parser.add_argument("--max_length", type=int, help="tokens of a text or window; as in evaluation by default")
    parser.add_argument("--text_column", help="of --file; text, sentence, sentence1, tokens, ... by default")
    parser.add_argument("--text_pair_column", help="of second texts, with --text_column")
    parser.add_argument("--allow_no_answer", action="store_true", help="SQuAD 2: the text may hold no answer")
    parser.add_argument("--null_threshold", type=float, help="the same, where no answer leads by more than so much")
    parser.add_argument("--doc_stride", type=int, help="tokens that neighbouring windows of a context share")
    parser.add_argument("--n_best", type=int, help="start and end candidates a window")
    parser.add_argument("--max_answer_length", type=int, help="tokens of the longest answer")


def run(args: Namespace, rest: list[str]) -> None:
    """Print the answer to a question, what the model says of a text, or that of each row of a file."""
    _check(args)
    if args.text is not None:
        from itrd_nlp.inference.texts import TextModel

        print_json(TextModel(args.model, args.max_length).predict_one(args.text, args.text_pair))
    elif args.question is not None:
        from itrd_nlp.inference.answering import answer

        print_json(_finite(answer(args.model, args.question, args.context, **_choices(args))._asdict()))
    else:
        from itrd_nlp.inference.saved_models import saved_task

        task = saved_task(args.model)
        if task in (None, "squad"):
            _refuse(args, OF_ROWS, "question answering")
            _write(_answers(args), args.output, indent=1)
        elif task == "images":
            from itrd_nlp.inference.images import predict_images

            _refuse(args, (*OF_ANSWERS, *OF_ROWS, "max_length"), "images")
            _write(predict_images(args.model, args.file), args.output)
        else:
            _refuse(args, OF_ANSWERS, f"a model for {task}")
            _write(_rows(args), args.output)


def _check(args: Namespace) -> None:
    """Raise :class:`UserError` where arguments do not go together."""
    if args.output is not None and args.file is None:
        raise UserError(f"predict: --output {args.output} without --file, whose predictions it takes; leave it out")
    if args.output is not None:
        check_parent(args.output)
    single = args.question is not None or args.context is not None
    if args.text is not None or args.text_pair is not None:
        names = ("question", "context", "file", *OF_ANSWERS, *OF_ROWS)
        given = [name for name in names if _is_given(args, name)]
        if args.text is None or given:
            beside = f"beside --{given[0]}" if given else "without --text"
            raise UserError(
                f"predict: --text or --text_pair {beside}: expected --text, and --text_pair where there are two"
            )
    elif single == (args.file is not None) or (single and (args.question is None or args.context is None)):
        raise UserError("predict: expected either --question and --context, or --text, or --file")
    elif single:
        _refuse(args, OF_ROWS, "--question")


def _is_given(args: Namespace, name: str) -> bool:
    return getattr(args, name) is not None and getattr(args, name) is not False  # 0 is


def _refuse(args: Namespace, names: Sequence[str], beside: str) -> None:
    for name in names:
        if _is_given(args, name):
            raise UserError(f"predict: --{name} with {beside}: it is for other models; leave it out")


def _choices(args: Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("max_length", *OF_ANSWERS)}


def _answers(args: Namespace) -> dict[str, str]:
    """The answer to each question of a file by its id, as SQuAD's own script reads them."""
    from itrd_nlp.inference.answering import answer_many
    from itrd_nlp.tasks.question_answering.data import read_questions

    data = read_questions(args.file)
    found = answer_many(args.model, data["question"], data["context"], **_choices(args))
    return {key: answer.text for key, answer in zip(data["id"], found, strict=True)}


def _rows(args: Namespace) -> list[dict[str, Any]]:
    from itrd_nlp.inference.texts import TextModel

    return TextModel(args.model, args.max_length).predict_file(args.file, args.text_column, args.text_pair_column)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without infinite scores, which JSON cannot hold."""
    return {name: x if isinstance(x, str) or math.isfinite(x) else None for name, x in values.items()}


def _write(found: Any, output: Path | None, indent: int | None = None) -> None:
    """One JSON object, or one on each line."""
    lines = found if isinstance(found, list) else [found]
    if output is None:
        for line in lines:
            print_json(line, indent=indent)
        return
    text = "".join(json.dumps(line, indent=indent, ensure_ascii=False) + "\n" for line in lines)
    write_text(output, text)


PREDICT = Command(
    "predict",
    "what a saved model says: answers, classes of texts or images, scores, tags, embeddings",
    (
        'itrd predict runs/t6/student --question "Who wrote it?" --context "Ada wrote it."',
        "itrd predict runs/t6/student --file questions.csv --output predictions.json",
        'itrd predict runs/classify/l3-itrd/student --text "What a film!"',
        "itrd predict runs/classify/l3-itrd/student --file reviews.csv --output classes.jsonl",
        "itrd predict runs/t6/student --file dev-v2.0.json --null_threshold -1.5",
        "itrd predict runs/cifar100/student --file photographs --output classes.jsonl",
    ),
    run,
    arguments,
)
