"""The task of a run: its data read, described and tokenised."""

import dataclasses
import logging

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.tasks import TASKS, check_teacher
from itrd_nlp.experiments.vocabulary import check_vocabulary, with_vocabulary
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError, nearest

logger = logging.getLogger(__name__)


def build_task(run_args: RunArguments, task_weight: float = 1.0) -> Task:
    """The task of a run, its data and tokenizer loaded; with a ``task_weight`` of 0 training needs no labels."""
    if run_args.task not in TASKS:
        raise UserError(
            f"task {run_args.task!r} is not known: expected one of {sorted(TASKS)}{nearest(run_args.task, TASKS)}"
        )
    check_teacher(run_args)
    check_vocabulary(run_args)
    task = with_vocabulary(run_args, TASKS[run_args.task](run_args, task_weight), task_weight)
    if task.teacher_tokenizer is not None and task.of_teacher is None:
        task.of_teacher = TASKS[run_args.task](dataclasses.replace(run_args, student={"from": "teacher"}), task_weight)
    return task


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
