"""The task of a run: each name of ``--task``, its data read, described and tokenised.

A new task: its module in :mod:`itrd_nlp.tasks`; then a line in TEXT_TASKS there if it reads rows of text, else a
function here and a line in TASKS.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.vocabulary import check_vocabulary, student_vocabulary
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.tasks.rows import load_rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.teacher_files import check_columns
from itrd_nlp.tasks.text_tasks import TEXT_TASKS
from itrd_nlp.tasks.toy import build_tokenizer, generate
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError, nearest, needing
from itrd_nlp.utils.tokenizers import tokenizers_differ

logger = logging.getLogger(__name__)

# arguments for answers in a context, for any text, for rows of text
OF_ANSWERS = ("doc_stride", "n_best", "max_answer_length", "null_threshold")
OF_TEXT = ("max_length", "num_proc", *OF_ANSWERS)
OF_ROWS = ("dataset_config", "text_column", "text_pair_column", "label_column")
SIZED = 5  # images, of which a new model takes the size where all have the same
OPTIONS = (  # the arguments of a run that its task takes
    *("dataset", "train_file", "validation_file", "max_train_samples", "max_eval_samples"),
    *(*OF_TEXT, *OF_ROWS),
)


class Tokenizers(NamedTuple):
    """The tokenizers of a run."""

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None = None  # where it has one of its own


def squad_task(run_args: RunArguments, task_weight: float = 1.0, tokenizers: Tokenizers | None = None) -> SquadTask:
    """Question answering on SQuAD v1.1, v2.0 or files of that kind."""
    _refuse(run_args, OF_ROWS, "question answering")
    tokenizer, of_teacher = tokenizers or _tokenizers(run_args)
    data = load_squad(run_args.dataset, run_args.train_file, run_args.validation_file)
    train = _first(data.train, run_args.max_train_samples)
    validation = _first(data.validation, run_args.max_eval_samples)
    return SquadTask(
        tokenizer, train, validation, teacher_tokenizer=of_teacher, skipped=data.skipped, **_options(run_args)
    )


def toy_task(run_args: RunArguments, task_weight: float = 1.0, tokenizers: Tokenizers | None = None) -> SquadTask:
    """Question answering on generated stories, by default with the toy's own tokenizer: no download."""
    if data := run_args.dataset or run_args.train_file or run_args.validation_file:
        raise UserError(f"task toy with {data!r}: it makes its own data; use --task squad for yours")
    _refuse(run_args, OF_ROWS, "question answering")
    train = generate(run_args.max_train_samples or 4000, seed=1)
    validation = generate(run_args.max_eval_samples or 500, seed=2)
    tokenizer, of_teacher = tokenizers or Tokenizers(_tokenizer(run_args) or build_tokenizer())
    return SquadTask(tokenizer, train, validation, teacher_tokenizer=of_teacher, **_options(run_args))


def image_task(run_args: RunArguments, task_weight: float = 1.0, classes: int | None = None) -> Any:
    """Image classification with ``classes`` classes, or as many as the data has."""
    _refuse(run_args, (*OF_TEXT, "text_column", "text_pair_column", "tokenizer", "corpus"), "images")
    with needing(f"task {run_args.task} needs torchvision and timm", "vision"):
        from itrd_nlp.tasks.image_classification.decoding import read_image
        from itrd_nlp.tasks.image_classification.files import load_images
        from itrd_nlp.tasks.image_classification.task import ImageTask
        from itrd_nlp.vision.classes import head_of
        from itrd_nlp.vision.models import USUAL_SIDE, preprocessing_of
    sources = (run_args.dataset, run_args.train_file, run_args.validation_file)
    splits = load_images(*sources, run_args.dataset_config, run_args.label_column)
    split = next(split for split in splits if split is not None)
    sizes = {read_image(split, i * (len(split) - 1) // (SIZED - 1)).size for i in range(SIZED)}
    side = sizes.pop()[0] if len(sizes) == 1 else USUAL_SIDE
    counts = {"train_count": run_args.max_train_samples, "eval_count": run_args.max_eval_samples}
    return ImageTask(*splits, preprocessing_of(run_args.teacher, side), classes, head_of(run_args.teacher), **counts)


def rows_task(run_args: RunArguments, task_weight: float = 1.0, tokenizers: Tokenizers | None = None) -> RowsTask:
    """A task on rows of text, of files or the Hub."""
    kind = TEXT_TASKS[run_args.task]
    _refuse(run_args, OF_ANSWERS, f"task {run_args.task}")
    tokenizers = tokenizers or _tokenizers(run_args)
    own_columns = {name: getattr(run_args, f"{name}_column") for name in ("text", "text_pair", "label")}
    sources = (run_args.dataset, run_args.dataset_config, run_args.train_file, run_args.validation_file)
    train, validation = load_rows(*sources, kind.columns._replace(**own_columns))
    if run_args.teacher is None and train is not None:
        check_columns(train, kind.output_columns)
    return kind(
        tokenizers.student,
        train,
        validation,
        teacher_tokenizer=tokenizers.teacher,
        teacher=run_args.teacher,
        train_count=run_args.max_train_samples,
        eval_count=run_args.max_eval_samples,
        max_length=run_args.max_length,
        num_proc=run_args.num_proc,
        task_weight=task_weight,
        **({"encoder": _reference(run_args)} if kind is EmbeddingTask else {}),
    )


def check_teacher(run_args: RunArguments) -> None:
    """Raise :class:`UserError` where there is no teacher, and the task or the student needs one.

    Outputs in the training file replace a teacher where there is one for each text.
    """
    if run_args.teacher is not None:
        return
    accepted = TEXT_TASKS[run_args.task].output_columns if run_args.task in TEXT_TASKS else ()
    if not accepted:
        several = (
            f" (task {run_args.task} needs several outputs for each text, so it cannot learn from outputs in a file as "
            "classification, multilabel, regression, embedding and reranking can)"
        )
        of_texts = run_args.task in TEXT_TASKS or run_args.task in ("squad", "toy")
        raise UserError(f"no teacher: expected a folder or a Hub id; add --teacher FOLDER{several if of_texts else ''}")
    if run_args.student_spec.from_teacher:
        raise UserError(
            f"no teacher: expected --teacher FOLDER; or, if the training file holds its outputs "
            f"({', '.join(accepted)}), --student FOLDER, because there is no teacher to take layers from"
        )


def _refuse(run_args: RunArguments, names: Sequence[str], kind: str) -> None:
    """Raise :class:`UserError` for an argument that a kind of task does not use."""
    for option in dataclasses.fields(RunArguments):
        value = getattr(run_args, option.name)
        if option.name in names and value != option.default:
            raise UserError(f"{option.name} {value!r} with {kind}: it is for other tasks; leave it out")


def _tokenizers(run_args: RunArguments) -> Tokenizers:
    """The tokenizers of student and teacher: the student's comes with its folder, or is the teacher's."""
    of_teacher = _tokenizer(run_args)
    if of_teacher is None:
        built = "student" if run_args.teacher is None else "teacher"
        raise UserError(
            f"task {run_args.task} with a {built} built from a config: expected a tokenizer too; add --tokenizer FOLDER"
        )
    spec = run_args.student_spec
    source = spec.tokenizer or spec.folder
    if source is None or run_args.teacher is None:
        return Tokenizers(of_teacher)
    own = load_tokenizer(source)
    if tokenizers_differ(own, of_teacher) is not None:
        return Tokenizers(own, of_teacher)
    # one may make token types that the other's model does not read
    return Tokenizers(max(of_teacher, own, key=lambda each: len(each.model_input_names)))


def _tokenizer(run_args: RunArguments) -> Any:
    """The teacher's tokenizer, or without a teacher the student's; None where neither has one."""
    of_student = run_args.student_spec.tokenizer if run_args.teacher is None else None
    if of_student and run_args.tokenizer not in (None, of_student):
        raise UserError(
            f"--tokenizer {run_args.tokenizer} and the student's own, {of_student}: expected one; there is no teacher"
        )
    source = run_args.tokenizer or of_student or _reference(run_args)
    return load_tokenizer(source) if source else None


def _reference(run_args: RunArguments) -> str | None:
    """The folder or Hub id of the teacher, or without a teacher that of what the student starts from, if any."""
    model = run_args.student_spec.folder if run_args.teacher is None else run_args.teacher
    return model if isinstance(model, str) else None


def _options(run_args: RunArguments) -> dict[str, Any]:
    return {name: getattr(run_args, name) for name in OF_TEXT}


def _first(data: Dataset | None, count: int | None) -> Dataset | None:
    """The first ``count`` examples; all of them without a count."""
    return data if data is None or count is None else data.select(range(min(count, len(data))))


# name -> function(arguments of the run, weight of its labels) -> Task; with a weight of 0 training needs no labels
TASKS: dict[str, Callable[..., Any]] = {
    "squad": squad_task,
    "toy": toy_task,
    "cifar10": partial(image_task, classes=10),
    "cifar100": partial(image_task, classes=100),
    "images": image_task,
    **dict.fromkeys(TEXT_TASKS, rows_task),
}


def build_task(run_args: RunArguments, task_weight: float = 1.0) -> Task:
    """The task of a run, its data and tokenizer loaded; with a ``task_weight`` of 0 training needs no labels."""
    if run_args.task not in TASKS:
        raise UserError(
            f"task {run_args.task!r} is not known: expected one of {sorted(TASKS)}{nearest(run_args.task, TASKS)}"
        )
    check_teacher(run_args)
    check_vocabulary(run_args)
    task = TASKS[run_args.task](run_args, task_weight)
    if (vocabulary := student_vocabulary(run_args, task)) is not None:
        task = _with_vocabulary(task, vocabulary, run_args, task_weight)
    if task.teacher_tokenizer is not None and task.teacher_task is None:
        of_teacher = dataclasses.replace(run_args, student={"from": "teacher"})
        task.teacher_task = TASKS[run_args.task](of_teacher, task_weight)
    return task


def _with_vocabulary(task: Task, vocabulary: Any, run_args: RunArguments, task_weight: float) -> Task:
    """The task with the tokenizer of the student's vocabulary, while the teacher keeps its own."""
    shared = run_args.teacher is not None and task.teacher_tokenizer is None
    tokenizers = Tokenizers(vocabulary.cut.tokenizer, task.tokenizer if shared else task.teacher_tokenizer)
    own = TASKS[run_args.task](run_args, task_weight, tokenizers)
    own.vocabulary, own.teacher_task = vocabulary, task if shared else None
    return own


def announced_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """:func:`build_task`; the first process reports how each split of the data was read."""
    task = build_task(run_args, training_args.task_weight)
    if training_args.process_index == 0:
        for line in task.describe():
            logger.info(f"[data] {line}")
        if task.vocabulary is not None:
            logger.info(f"[vocabulary] {task.vocabulary.description}")
    return task


def tokenised_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """:func:`announced_task` with its examples ready; the first process makes them, the others read them from disk."""
    task = announced_task(run_args, training_args)
    with training_args.main_process_first(desc="tokenising"):
        splits = {"train": task.train_dataset, "validation": task.eval_dataset}
        _ = task.for_teacher.eval_dataset  # its training data only where it is fine-tuned
    for split, dataset in splits.items():
        if dataset is None:
            raise UserError(f"no {split} data: expected --{split}_file FILE or --dataset HUB_ID")
    return task
