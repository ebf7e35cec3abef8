"""From the arguments of a run to its task.

A new task: its module in :mod:`itrd_nlp.tasks`, a function here, and a line in TASKS.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from datasets import Dataset

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.tasks.rows import CLASSES, SCORES, WORDS, Columns, load_rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask
from itrd_nlp.tasks.token_classification import TaggingTask
from itrd_nlp.tasks.toy import build_tokenizer, generate
from itrd_nlp.utils.errors import UserError, first_line

OF_ANSWERS = ("doc_stride", "n_best", "max_answer_length", "null_threshold")
OF_TEXT = ("max_length", "num_proc", *OF_ANSWERS)
OF_ROWS = ("dataset_config", "text_column", "text_pair_column", "label_column")
OPTIONS = (  # the arguments of a run that its task takes
    *("dataset", "train_file", "validation_file", "max_train_samples", "max_eval_samples"),
    *(*OF_TEXT, *OF_ROWS),
)


def squad_task(run_args: RunArguments, task_weight: float = 1.0) -> SquadTask:
    """Question answering on SQuAD v1.1, v2.0 or files of that kind."""
    _refuse(run_args, OF_ROWS, "question answering")
    tokenizer = _needed_tokenizer(run_args)
    data = load_squad(run_args.dataset, run_args.train_file, run_args.validation_file)
    splits = _first(run_args, data.train, data.validation)
    return SquadTask(tokenizer, *splits, skipped=data.skipped, **_options(run_args))


def toy_task(run_args: RunArguments, task_weight: float = 1.0) -> SquadTask:
    """Question answering on generated stories, with the toy's own tokenizer unless one is given: no download."""
    given = [value for value in (run_args.dataset, run_args.train_file, run_args.validation_file) if value]
    if given:
        raise UserError(f"task toy with {given[0]!r}: it makes its own data; use --task squad for yours")
    _refuse(run_args, OF_ROWS, "question answering")
    train = generate(run_args.max_train_samples or 4000, seed=1)
    validation = generate(run_args.max_eval_samples or 500, seed=2)
    return SquadTask(_tokenizer(run_args) or build_tokenizer(), train, validation, **_options(run_args))


def image_task(run_args: RunArguments, task_weight: float = 1.0, classes: int | None = None) -> Any:
    """Image classification with ``classes`` classes, or as many as the data has."""
    _refuse(run_args, (*OF_TEXT, "text_column", "text_pair_column", "tokenizer"), "images")
    try:
        from itrd_nlp.tasks.image_classification.decoding import read_image
        from itrd_nlp.tasks.image_classification.files import load_images
        from itrd_nlp.tasks.image_classification.task import ImageTask
        from itrd_nlp.vision.classes import head_of
        from itrd_nlp.vision.models import preprocessing_of
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"task {run_args.task} needs torchvision and timm: pip install 'itrd_nlp[vision]' ({first_line(error)})"
        ) from None
    places = (run_args.dataset, run_args.train_file, run_args.validation_file)
    splits = load_images(*places, run_args.dataset_config, run_args.label_column)
    side = read_image(next(split for split in splits if split is not None), 0).width
    counts = {"train_count": run_args.max_train_samples, "eval_count": run_args.max_eval_samples}
    return ImageTask(*splits, preprocessing_of(run_args.teacher, side), classes, head_of(run_args.teacher), **counts)


def rows_task(
    run_args: RunArguments, task_weight: float = 1.0, *, kind: type[RowsTask], columns: Columns = CLASSES
) -> RowsTask:
    """A task on rows of text, of files or the Hub."""
    _refuse(run_args, OF_ANSWERS, f"task {run_args.task}")
    if run_args.text_pair_column and not run_args.text_column:
        raise UserError(f"text_pair_column {run_args.text_pair_column!r} alone: expected --text_column too")
    tokenizer = _needed_tokenizer(run_args)
    columns = Columns(
        columns.layouts, columns.labels, run_args.text_column, run_args.text_pair_column, run_args.label_column
    )
    places = (run_args.dataset, run_args.dataset_config, run_args.train_file, run_args.validation_file)
    train, validation = load_rows(*places, columns)
    options: dict[str, Any] = {"max_length": run_args.max_length, "num_proc": run_args.num_proc}
    options["task_weight"] = task_weight
    counts: dict[str, Any] = {"train_count": run_args.max_train_samples, "eval_count": run_args.max_eval_samples}
    return kind(tokenizer, train, validation, teacher=run_args.teacher, **counts, **options)


def _refuse(run_args: RunArguments, names: Sequence[str], kind: str) -> None:
    """Raise :class:`UserError` for an argument that means nothing to a kind of task."""
    for option in fields(RunArguments):
        value = getattr(run_args, option.name)
        if option.name in names and value != option.default:
            raise UserError(f"{option.name} {value!r} with {kind}: it is for other tasks; leave it out")


def _needed_tokenizer(run_args: RunArguments) -> Any:
    tokenizer = _tokenizer(run_args)
    if tokenizer is None:
        raise UserError(
            f"task {run_args.task} with a teacher built from a config: expected a tokenizer too; add --tokenizer FOLDER"
        )
    return tokenizer


def _tokenizer(run_args: RunArguments) -> Any:
    source = run_args.tokenizer or (run_args.teacher if isinstance(run_args.teacher, str) else None)
    return load_tokenizer(source) if source else None


def _options(run_args: RunArguments) -> dict[str, Any]:
    return {name: getattr(run_args, name) for name in OF_TEXT}


def _first(run_args: RunArguments, *splits: Dataset | None) -> list[Dataset | None]:
    """As many examples as are asked for: the first."""
    chosen = []
    for data, count in zip(splits, (run_args.max_train_samples, run_args.max_eval_samples), strict=True):
        if data is not None and count is not None and count < len(data):
            data = data.select(range(count))
        chosen.append(data)
    return chosen


# name -> function(arguments of the run, weight of its labels) -> Task; with a weight of 0 training needs no labels
TASKS: dict[str, Callable[..., Any]] = {
    "squad": squad_task,
    "toy": toy_task,
    "cifar10": partial(image_task, classes=10),
    "cifar100": partial(image_task, classes=100),
    "images": image_task,
    "classification": partial(rows_task, kind=ClassificationTask),
    "multilabel": partial(rows_task, kind=MultilabelTask),
    "regression": partial(rows_task, kind=RegressionTask, columns=SCORES),
    "tagging": partial(rows_task, kind=TaggingTask, columns=WORDS),
    "embedding": partial(rows_task, kind=EmbeddingTask, columns=SCORES),
}
