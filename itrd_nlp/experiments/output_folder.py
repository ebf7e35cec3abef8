"""Output folders: the fingerprint of the run in one, which only the same run continues, and its lock."""

import dataclasses
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import BaseFileLock, FileLock, Timeout
from transformers import PreTrainedModel

from itrd_nlp.distillation.teacher_columns import teacher_columns, without_teacher
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.tasks import OPTIONS
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import VERSION, selects, training_values
from itrd_nlp.utils.errors import BusyError, DamagedError, UserError, one_line
from itrd_nlp.utils.hashing import data_digest, digest, json_values, weights_digest
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.ranks import from_first_rank

logger = logging.getLogger(__name__)

# config fields that compute nothing
FIELDS_WITHOUT_EFFECT = ("_name_or_path", "transformers_version", "dtype", "architectures", TEMPERATURE)
LOCK = ".lock"
OWNER = ".lock.json"  # who has the lock, since when
PLAN = "plan.json"  # the fingerprint of the run in an output folder
# arguments that decide no weights
NOT_IN_FINGERPRINT = ("overwrite", "shared_dir", "baseline", "latency", "label", "num_proc")
SAME_RUN = (  # equal in a fair comparison, like fairness.SAME_TRAINING
    *("task", "teacher", "teacher_config", "teacher_training", "tokenizer", "student", "corpus"),
    *(name for name in OPTIONS if name not in NOT_IN_FINGERPRINT),
)


def arguments_of(run_args: RunArguments, training_args: ITRDArguments) -> dict[str, Any]:
    """All arguments of a run as JSON values, without folders, trackers and tokens."""
    values = {f.name: without_parents(getattr(run_args, f.name)) for f in dataclasses.fields(run_args)}
    values = {name: value for name, value in values.items() if name not in NOT_IN_FINGERPRINT and value is not None}
    return json_values({**values, **training_values(training_args)})


def run_fingerprint(
    training_args: ITRDArguments,
    baseline: dict[str, Any],
    teacher: torch.nn.Module | Dataset,
    task: Task,
    keep_projection: bool = False,
) -> dict[str, Any]:
    """What decides the files of a run's students.

    Args:
        baseline: the :func:`baseline_fingerprint`.
        teacher: a model, or the training data that holds a teacher's outputs.
        keep_projection: whether the student is saved with its projection; False has no entry, as in earlier versions.
    """
    if isinstance(teacher, Dataset):
        of_teacher = {"teacher": data_digest(teacher.select_columns(teacher_columns(teacher)))}
    else:
        of_teacher = {"teacher": weights_digest(teacher), "teacher's config": config_digest(teacher)}
    others: dict[str, Any] = {"keep_projection": True} if keep_projection else {}
    others |= _selecting(training_args, task)
    return {**baseline, **of_teacher, **_comparable(training_values(training_args)), **others}


def config_digest(model: Any) -> str:
    """Digest of what a model's config says of its outputs: its heads and activations stand in no weight."""
    fields = model.config.to_diff_dict()
    return digest({key: value for key, value in fields.items() if key not in FIELDS_WITHOUT_EFFECT})


def baseline_fingerprint(training_args: ITRDArguments, task: Task, start: PreTrainedModel) -> dict[str, Any]:
    """What decides the weights of a student that is trained without distillation, as JSON values."""
    values = training_values(training_args, distils=False)
    values |= {"training data": data_digest(without_teacher(task.train_dataset)), "student": weights_digest(start)}
    values |= {"student's config": config_digest(start), "version": VERSION}
    if task.vocabulary is not None:  # of others there is no entry, as in earlier versions
        values["vocabulary"] = task.vocabulary.fingerprint
    return _comparable({**values, **_selecting(training_args, task)})


def _selecting(training_args: ITRDArguments, task: Task) -> dict[str, str]:
    """The digest of the validation data, where scores on them decide the weights."""
    if not selects(training_args):
        return {}
    return {"validation data": digest([data_digest(task.eval_dataset), task.scoring()])}


def is_locked(folder: Path) -> bool:
    """Whether another call holds a folder."""
    try:
        if folder.is_dir():
            FileLock(folder / LOCK).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # who takes the lock says why it cannot be
        pass
    return False


@contextmanager
def locked(folder: Path, training_args: ITRDArguments, wait: bool = False) -> Iterator[None]:
    """Keep other calls out of a folder while it is written; the first rank takes the lock for all.

    Args:
        wait: until another call releases it; not with several ranks, whose collectives would time out.

    Raises:
        BusyError: another call has the lock.
        UserError: the folder cannot be made, or locked.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    from_first_rank(lambda: _acquire(folder, lock, wait and training_args.world_size == 1), training_args)
    try:
        yield
    finally:
        if training_args.process_index == 0:
            with suppress(OSError):
                (folder / OWNER).unlink()
        lock.release()


def _acquire(folder: Path, lock: BaseFileLock, wait: bool) -> None:
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise BusyError(
                    f"another run is at {folder} ({lock_owner(folder)}): wait for it, then start again"
                ) from None
            logger.info(
                f"[wait] {folder} is in use by {lock_owner(folder)}: this run goes on once that has ended; "
                "Ctrl-C stops waiting, and the same command continues",
            )
            lock.acquire()
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        write_json(folder / OWNER, {"host": socket.gethostname(), "process": os.getpid(), "since": since})
    except (OSError, NotImplementedError) as error:  # read-only, another user's, a file system without locks
        lock.release()
        raise UserError(
            f"{folder} cannot be locked ({one_line(error)}): expected a folder that you may write to, on a "
            "file system with locks; name another"
        ) from None


def lock_owner(folder: Path) -> str:
    """The process that has a folder's lock."""
    try:
        owner = read_json(folder / OWNER)
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, DamagedError, KeyError):  # it has only just started, or is about to end
        return "another process"


def reserve(output: Path, fingerprint: dict[str, Any], overwrite: bool, training_args: ITRDArguments) -> None:
    """Take the output folder for a run, on the first rank; with ``overwrite``, remove the models of another run.

    Raises:
        UserError: the folder holds another run.
    """

    def take() -> None:
        if check_reserved(output, fingerprint, overwrite):
            (output / "record.json").unlink(missing_ok=True)
            shutil.rmtree(output / "student", ignore_errors=True)
        write_json(output / PLAN, fingerprint)

    from_first_rank(take, training_args)


def check_arguments(output: Path, training_args: ITRDArguments, overwrite: bool) -> None:
    """:func:`check_reserved` for the part of a fingerprint that is known before there is a teacher."""
    known = {"version": VERSION, **_comparable(training_values(training_args))}
    from_first_rank(lambda: check_reserved(output, known, overwrite, partial=True), training_args)


def check_reserved(output: Path, fingerprint: dict[str, Any], overwrite: bool, partial: bool = False) -> list[str]:
    """The keys in which the run in the output folder differs; raises :class:`UserError` unless ``overwrite``.

    Args:
        partial: the fingerprint is a part of one; a damaged file is not reported yet.
    """
    path = output / PLAN
    if not path.is_file() and not overwrite and (output / "student" / "config.json").is_file():
        raise UserError(
            f"{output / 'student'} was not made by a run: expected a folder of its own; choose another --output_dir "
            "or add --overwrite true"
        )
    try:
        old = read_json(path) if path.is_file() else fingerprint
    except DamagedError as error:
        if partial:
            return []
        logger.warning(f"[run] {error}")
        old = {**fingerprint, path.name: "damaged"}
    keys = {*fingerprint} if partial else {*old, *fingerprint}
    changed = sorted(key for key in keys if old.get(key) != fingerprint.get(key))
    if old.get("version") != VERSION and not overwrite:
        raise UserError(
            f"{output} holds a run that another version of itrd_nlp began, which did not write down all that decides "
            "it: finish it with that version, choose another --output_dir, or start afresh with --overwrite true"
        )
    if changed and not overwrite:
        raise UserError(
            f"{output} holds another run, which differs in {', '.join(changed)}: choose another --output_dir "
            "or add --overwrite true"
        )
    return changed


def without_parents(value: Any) -> Any:
    """A path as its last part, which depends neither on the machine nor on the folder that a command runs in."""
    if isinstance(value, dict):
        return {key: without_parents(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_parents(inner) for inner in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or ("/" in value and Path(value).exists()))
    return Path(value).absolute().name if is_path else value


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values with 3.0 as 3, so that equal numbers have one digest."""

    def number(text: str) -> int | float:
        return int(float(text)) if float(text).is_integer() else float(text)

    return json.loads(json.dumps(values, default=str), parse_float=number)
