"""What an output folder holds: the same plan is continued, another is refused."""

import dataclasses
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
from filelock import BaseFileLock, FileLock, Timeout
from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.losses.distributed import from_first_rank
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import VERSION, selects, training_values
from itrd_nlp.utils.errors import BusyError, DamagedError, UserError, first_line
from itrd_nlp.utils.hashing import data_digest, digest, json_values, weights_digest
from itrd_nlp.utils.io import make_folder, read_json, write_json

logger = logging.getLogger(__name__)

UNSEEN = ("_name_or_path", "transformers_version", "dtype", "architectures")  # config fields that compute nothing
LOCK = ".lock"
OWNER = ".lock.json"  # who has the lock, since when
NO_PART = ("overwrite", "shared_dir", "baseline", "latency", "label", "num_proc")  # of what a run is


def arguments_of(run_args: RunArguments, training_args: ITRDArguments) -> dict[str, Any]:
    """What was asked for, in full, as JSON values; places, trackers and tokens are left out."""
    names = [f.name for f in dataclasses.fields(run_args) if f.name not in NO_PART]
    asked = {name: _name(getattr(run_args, name)) for name in names if getattr(run_args, name) is not None}
    return json_values({**asked, **training_values(training_args)})


def run_fingerprint(training_args: ITRDArguments, baseline: dict[str, Any], teacher: torch.nn.Module) -> dict[str, Any]:
    """What decides the weights of a run's students, as JSON values; ``baseline``: of :func:`baseline_fingerprint`."""
    return {**baseline, "teacher": weights_digest(teacher)} | _plain(training_values(training_args))


def baseline_fingerprint(training_args: ITRDArguments, task: Task, start: PreTrainedModel) -> dict[str, Any]:
    """What decides the weights of a student that is trained without distillation, as JSON values."""
    config = {key: value for key, value in start.config.to_diff_dict().items() if key not in UNSEEN}
    values = training_values(training_args, distils=False)
    values |= {"training data": data_digest(task.train_dataset), "student": weights_digest(start)}
    values |= {"student's config": digest(config), "version": VERSION}
    if selects(training_args):
        values["validation data"] = digest([data_digest(task.eval_dataset), task.scoring()])
    return _plain(values)


def is_locked(folder: Path) -> bool:
    """Whether another call holds a folder."""
    try:
        if folder.is_dir():
            FileLock(folder / LOCK).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


@contextmanager
def locked(folder: Path, training_args: ITRDArguments, wait: bool = False) -> Iterator[None]:
    """Keep other calls out of a folder while it is written; the first rank does, for all.

    Args:
        wait: until another call has left it; several ranks never do, as a collective in which they wait has a limit.

    Raises:
        BusyError: another call is at it.
        UserError: no folder that can be made, or locked.
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
                text = f"another run is at {folder} ({lock_owner(folder)}): wait for it, then start again"
                raise BusyError(text) from None
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
            f"{folder} cannot be locked ({first_line(error)}): expected a folder that you may write to, on a "
            "file system with locks; name another"
        ) from None


def lock_owner(folder: Path) -> str:
    """Who is at a folder, as far as that is known."""
    try:
        found = read_json(folder / OWNER)
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, DamagedError, KeyError):  # it has only just begun, or ends
        return "another process"


def reserve(output: Path, plan: dict[str, Any], overwrite: bool, training_args: ITRDArguments) -> None:
    """Take the output folder for ``plan``, on the first rank; models of another plan are removed only on ``overwrite``.

    Raises:
        UserError: the folder holds models of another plan.
    """

    def take() -> None:
        if check_reserved(output, plan, overwrite):
            (output / "record.json").unlink(missing_ok=True)
            shutil.rmtree(output / "student", ignore_errors=True)
        write_json(output / "plan.json", plan)

    from_first_rank(take, training_args)


def check_arguments(output: Path, training_args: ITRDArguments, overwrite: bool) -> None:
    """:func:`check_reserved` of what is known before there is a teacher."""
    path = output / "plan.json"

    def check() -> None:
        try:
            old = read_json(path) if path.is_file() else None
        except DamagedError:  # check_reserved tells it
            return
        if old is not None:
            check_reserved(output, {**old, "version": VERSION, **_plain(training_values(training_args))}, overwrite)

    from_first_rank(check, training_args)


def check_reserved(output: Path, plan: dict[str, Any], overwrite: bool) -> list[str]:
    """What of ``plan`` differs from what the output folder holds; raises :class:`UserError` unless ``overwrite``."""
    path = output / "plan.json"
    try:
        old = read_json(path) if path.is_file() else plan
    except DamagedError as error:
        logger.warning(f"[run] {error}")
        old = {path.name: "damaged"}
    changed = sorted(key for key in {*old, *plan} if old.get(key) != plan.get(key))
    if old.get("version") != VERSION and not overwrite and path.name not in old:
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


def _name(value: Any) -> Any:
    """A file or folder without the machine's own part of its path."""
    if isinstance(value, dict):
        return {key: _name(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """:func:`json_values`, with 3.0 as 3: equal numbers have one digest."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [whole(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return whole(json_values(values))
