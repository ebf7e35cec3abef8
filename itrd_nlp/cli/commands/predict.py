"""``itrd predict``: predictions of a saved model on texts and images."""

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from itrd_nlp.cli.command import Command, check_parent, write_text
from itrd_nlp.utils.console import print_json
from itrd_nlp.utils.errors import UserError

ANSWER_OPTIONS = ("max_length", "allow_no_answer", "null_threshold", "doc_stride", "n_best", "max_answer_length")
OPTIONS = {  # kind of input -> the options that it may be combined with
    "--text": ("text_pair", "max_length"),
    "--query": ("documents", "max_length"),
    "--question": ("context", *ANSWER_OPTIONS),
    "questions": ("output", *ANSWER_OPTIONS),
    "texts": ("output", "max_length", "text_column", "text_pair_column"),
    "images": ("output",),
}


def arguments(parser: ArgumentParser) -> None:
    """Add the options: one kind of input, and what goes with it."""
    parser.add_argument("model", help="folder or Hub id, or a folder written by itrd export")
    parser.add_argument("--question", help="one question, about --context")
    parser.add_argument("--context", help="the text that holds its answer")
    parser.add_argument("--text", help="a text to classify, score, tag or embed, depending on the model's head")
    parser.add_argument("--text_pair", help="the second text, if the model reads pairs")
    parser.add_argument("--query", help="a query to rank --documents for")
    parser.add_argument("--documents", nargs="+", help="texts to rank, each quoted as one argument")
    parser.add_argument(
        "--file",
        help="questions with contexts, or texts, as --validation_file; an image, or a folder or parquet file of images",
    )
    parser.add_argument("--output", type=Path, help="file for the predictions of --file; stdout by default")
    parser.add_argument("--max_length", type=int, help="longest text or window in tokens; as in evaluation by default")
    parser.add_argument("--text_column", help="column of texts; text, sentence, sentence1, tokens, ... by default")
    parser.add_argument("--text_pair_column", help="column of second texts, with --text_column")
    parser.add_argument("--allow_no_answer", action="store_true", help="SQuAD 2: the text may hold no answer")
    parser.add_argument("--null_threshold", type=float, help="SQuAD 2: lead above which 'no answer' is returned")
    parser.add_argument("--doc_stride", type=int, help="tokens that neighbouring windows of a context share")
    parser.add_argument("--n_best", type=int, help="start and end candidates per window")
    parser.add_argument("--max_answer_length", type=int, help="longest answer in tokens")


def run(args: Namespace, rest: list[str]) -> None:
    """Predict one text, one question, or each row or image of a file."""
    options = {name: value for name, value in vars(args).items() if value is not None and value is not False}
    del options["command"]
    model, output = options.pop("model"), args.output
    if output is not None and args.file is None:
        raise UserError(f"predict: --output {output} without --file, whose predictions it takes; leave it out")
    if output is not None:
        check_parent(output)
    inputs = [name for name in ("text", "question", "query", "file") if name in options]
    halves = [(args.question, args.context), (args.query, args.documents)]
    if len(inputs) != 1 or any((first is None) != (second is None) for first, second in halves):
        raise UserError(
            "predict: expected either --question and --context, or --query and --documents, or --text, or --file"
        )
    kind = _kind_of_file(model) if inputs == ["file"] else f"--{inputs[0]}"
    for name in options:
        if name not in (*inputs, *OPTIONS[kind]):
            raise UserError(f"predict: --{name} with {kind}: it is for other inputs or models; leave it out")
    options.pop("output", None)
    _write(PREDICTORS[kind](model, **options), output)


def _kind_of_file(model: str) -> str:
    from itrd_nlp.inference.saved_models import saved_task

    return {"squad": "questions", "images": "images"}.get(saved_task(model) or "", "texts")


def _question(model: str, **options: Any) -> list[dict[str, Any]]:
    from itrd_nlp.inference.answering import answer

    values = answer(model, **options)._asdict()
    finite = {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in values.items()}
    return [finite]  # JSON has no infinity


def _questions(model: str, file: str, **options: Any) -> dict[str, str]:
    """The answer to each question by its id: SQuAD's format of predictions."""
    from itrd_nlp.inference.answering import answer_many
    from itrd_nlp.tasks.question_answering.data import read_questions

    data = read_questions(file)
    answers = answer_many(model, data["question"], data["context"], **options)
    return {key: answer.text for key, answer in zip(data["id"], answers, strict=True)}


def _texts(model: str, max_length: int | None = None, file: str | None = None, **texts: str) -> list[dict[str, Any]]:
    """Predict the columns of a file, or one text or pair."""
    from itrd_nlp.inference.texts import TextModel

    ranks = file is not None and "text_column" not in texts and _holds_documents(model, file)
    text_model = TextModel(model, max_length, reranks=ranks)
    return [text_model.predict_one(**texts)] if file is None else text_model.predict_file(file, **texts)


def _holds_documents(model: str, file: str) -> bool:
    """Whether a model gets queries and documents that may be a reranker by its config, of one output or two classes."""
    from itrd_nlp.models.classes import saved_config, task_of
    from itrd_nlp.tasks.rows import DOCUMENTS, LAYOUTS, QUERIES
    from itrd_nlp.tasks.tabular import read_table

    config = saved_config(model)
    may_rank = {"regression": 1, "classification": 2}  # task -> outputs
    if config is None or config.problem_type == "regression" or may_rank.get(str(task_of(config))) != config.num_labels:
        return False
    names = {*read_table(file, "validation").columns}
    if config.num_labels == 2 and any(names >= {*layout} for layout in LAYOUTS):
        return False  # a classifier reads these columns
    return bool(names & {*QUERIES} and names & {*DOCUMENTS})


def _ranking(model: str, query: str, documents: list[str], max_length: int | None = None) -> list[dict[str, Any]]:
    """The documents, the most relevant one first."""
    from itrd_nlp.inference.reranking import rerank

    ranked = rerank(model, query, documents, max_length=max_length)
    return [{name: value for name, value in asdict(each).items() if value is not None} for each in ranked]


def _images(model: str, file: str) -> list[dict[str, Any]]:
    from itrd_nlp.inference.images import predict_images

    return predict_images(model, file)


PREDICTORS: dict[str, Callable[..., Any]] = {
    "--text": _texts,
    "--query": _ranking,
    "--question": _question,
    "questions": _questions,
    "texts": _texts,
    "images": _images,
}


def _write(results: list[dict[str, Any]] | Mapping[str, str], output: Path | None) -> None:
    """Print or write a list as JSON lines, a mapping as one indented JSON object."""
    lines, indent = (results, None) if isinstance(results, list) else ([results], 1)
    if output is not None:
        write_text(output, "".join(json.dumps(line, indent=indent, ensure_ascii=False) + "\n" for line in lines))
        return
    for line in lines:
        print_json(line, indent)


PREDICT = Command(
    "predict",
    "predictions of a saved model: answers, classes of texts or images, scores, rankings, tags, embeddings",
    (
        'itrd predict runs/t6/student --question "Who wrote it?" --context "Ada wrote it."',
        "itrd predict runs/t6/student --file questions.csv --output predictions.json",
        'itrd predict runs/classify/l3-itrd/student --text "What a film!"',
        "itrd predict runs/classify/l3-itrd/student --file reviews.csv --output classes.jsonl",
        'itrd predict runs/rerank/l3-listwise/student --query "Who wrote it?" --documents "Ada wrote it." "It rained."',
        "itrd predict runs/t6/student --file dev-v2.0.json --null_threshold -1.5",
        "itrd predict runs/cifar100/resnet32x4-resnet8x4-itrd/student --file photographs --output classes.jsonl",
    ),
    run,
    arguments,
)
