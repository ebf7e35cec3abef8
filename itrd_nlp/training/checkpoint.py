"""A distiller on disk: the student's folder, its losses' tensors beside it, and the marker of a complete checkpoint."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from itrd_nlp.distillation.distiller import Distiller
from itrd_nlp.models.loading import load_checkpoint, load_config
from itrd_nlp.utils.errors import DamagedError, UserError, one_line
from itrd_nlp.utils.io import fsync, read_json, write_json

logger = logging.getLogger(__name__)

SIDECAR = "itrd_state.safetensors"
MARKER = "complete.json"  # names and sizes of a checkpoint's files; written last
STUDENT, LOSSES = "student.", "losses."  # prefixes in a distiller's state


def save_distiller(distiller: Distiller, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the student as ``save_pretrained`` does, and the losses' own tensors into ``SIDECAR``.

    ``state`` is the distiller's state dict, where the distiller does not hold its tensors itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = distiller.state_dict() if state is None else state
    try:
        distiller.student.save_pretrained(folder, state_dict=_below(state, STUDENT))
        if losses := _below(state, LOSSES):
            save_file(losses, folder / SIDECAR)
        for path in folder.glob("*.safetensors"):  # safetensors makes them private; other users may share the folder
            path.chmod((folder / "config.json").stat().st_mode & 0o777)
    except SafetensorError as error:  # also for a full disk
        raise UserError(f"{folder} cannot be written ({one_line(error)}): make room, or name another") from error


def load_distiller(distiller: Distiller, folder: Path) -> None:
    """Read what :func:`save_distiller` wrote; raises :class:`UserError` where the losses' part is missing."""
    student = distiller.student
    config = load_config(folder, type(student.config))  # transformers finds no class for a user's own model
    student.load_state_dict(load_checkpoint(folder, type(student), config).model.state_dict())
    if len(distiller.losses.state_dict()):
        expected = "expected a checkpoint of a run with the same losses; start afresh in another output_dir"
        if not (folder / SIDECAR).is_file():
            raise UserError(f"{folder} has no {SIDECAR}: {expected}")
        try:
            distiller.losses.load_state_dict(load_file(folder / SIDECAR))
        except RuntimeError as error:
            raise UserError(f"{folder / SIDECAR} is of other losses: {expected}") from error


def mark_complete(checkpoint: Path) -> None:
    """Force a checkpoint to disk, then write the names and sizes of its files into ``MARKER``."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    for path in files:
        fsync(path)
    write_json(checkpoint / MARKER, {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files})
    fsync(checkpoint.parent)


def why_incomplete(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None."""
    if not (checkpoint / MARKER).is_file():
        return f"never finished, it has no {MARKER}"
    try:
        sizes = read_json(checkpoint / MARKER)
    except DamagedError:
        return f"{MARKER} is damaged"
    for name, size in sizes.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if (checkpoint / name).stat().st_size != size:
            return f"{name} has {(checkpoint / name).stat().st_size} bytes, {size} were written"
    return None


class Origin(TrainerCallback, ExportableState):
    """Stores in each checkpoint the fingerprint of its run."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def state(self) -> dict[str, Any]:
        return {"args": {"fingerprint": self.fingerprint}, "attributes": {}}

    @staticmethod
    def of(checkpoint: Path) -> str | None:
        """The fingerprint in a checkpoint, or None."""
        return _stored(checkpoint, Origin.__name__, "args", "fingerprint")


class TrainingId(TrainerCallback, ExportableState):
    """Stores in each checkpoint which training wrote it; one that is resumed keeps its id."""

    def __init__(self) -> None:
        self.id = ""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"id": self.id}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.id = (saved and saved["attributes"]["id"]) or uuid4().hex

    @staticmethod
    def of(checkpoint: Path) -> str | None:
        """What a checkpoint says; None where it says nothing."""
        return _stored(checkpoint, TrainingId.__name__, "attributes", "id")


class CacheState(TrainerCallback, ExportableState):
    """Stores in each checkpoint whether the teacher's outputs were cached: the same training goes on with the same."""

    def __init__(self) -> None:
        self.cached = False

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"cached": self.cached}}

    @staticmethod
    def of(checkpoint: Path) -> bool | None:
        """What a checkpoint says; None where it says nothing."""
        return _stored(checkpoint, CacheState.__name__, "attributes", "cached")


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by their step."""
    named = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    return {int(step): path for step, path in named if step.isdigit()}


def last_checkpoint(folder: Path, fingerprint: str | None = None) -> Path | None:
    """The newest complete checkpoint of a folder; warns of those with more steps that it passes over.

    Without a fingerprint, those count which the training wrote that finished one last.
    """
    by_step = checkpoints(folder)
    finished = [path for path in by_step.values() if (path / MARKER).is_file()]
    training = max(finished, key=lambda path: (path / MARKER).stat().st_mtime, default=None)
    for _, path in sorted(by_step.items(), reverse=True):
        reason = why_incomplete(path)
        if reason is None and fingerprint is not None and Origin.of(path) != fingerprint:
            reason = "another run wrote it"
        if reason is None and fingerprint is None and TrainingId.of(path) != TrainingId.of(training or path):
            reason = "an earlier training wrote it"
        if reason is None:
            return path
        logger.warning(f"[resume] {path} is passed over: {reason}")
    return None


def _stored(checkpoint: Path, callback: str, kind: str, name: str) -> Any:
    """A value that a callback stored in a checkpoint, or None."""
    path = checkpoint / TRAINER_STATE_NAME
    if not path.is_file():
        return None
    try:
        return TrainerState.load_from_json(str(path)).stateful_callbacks[callback][kind][name]
    except (ValueError, TypeError, KeyError):  # damaged, or without one
        return None


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}
