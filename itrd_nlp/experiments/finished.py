"""Models that were trained to their end: written with checksums and a fingerprint, validated before they are reused."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from itrd_nlp.experiments.trainings import FINISHED
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.models.projection import embedding_projection, save_projection
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import with_dense
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.errors import DamagedError, UserError, first_line, writing
from itrd_nlp.utils.hashing import damage, digests
from itrd_nlp.utils.io import move, read_json, write_json

logger = logging.getLogger(__name__)

NOT_SAVED = ("checkpoint-", "runs", FINISHED)  # in a model's folder, but not part of the model


def read_finished(folder: Path, fingerprint: str, remove: bool = False) -> dict[str, Any] | None:
    """The results of the finished model in a folder; None where there is none, or a damaged one.

    Args:
        fingerprint: that the model must carry.
        remove: report a damaged model and forget that it was finished; only with the folder's lock.

    Raises:
        UserError: the model carries another fingerprint, or cannot be read.
    """
    path = folder / FINISHED
    if not path.is_file():
        return None
    try:
        results = read_json(path)
        reason = damage(folder, results.get("files", {}))
    except DamagedError as error:
        reason = str(error)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({first_line(error)}): expected a finished model that you may read; name another "
            "folder"
        ) from None
    if reason is not None:
        if remove:
            logger.warning(f"[finished] {folder}: {reason}; made again from its last checkpoint")
            path.unlink(missing_ok=True)
        return None
    if results.get("fingerprint") != fingerprint:
        raise UserError(f"{folder} holds a finished model of another run: name another folder, or move it away")
    return results


def save_finished(
    trainer: ITRDTrainer, task: Task, folder: Path, keeps_projection: bool, results: dict[str, Any]
) -> None:
    """Write a model that was trained to its end; ``results`` carry its fingerprint and what its record needs."""
    before = _write_times(folder)
    if trainer.is_world_process_zero():
        student = trainer.student
        projection = embedding_projection(trainer.distiller) if keeps_projection else nn.Identity()
        files = task.files(student)
        if not isinstance(projection, nn.Identity):  # of equal widths there is none: the student's own fits
            save_projection(projection, folder)
            files = with_dense(files)
        for name, values in files.items():  # before the model, which may be pushed with them
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    trainer.save_model(_internal_call=True)  # the run pushes it, once it has its card
    if trainer.is_world_process_zero():
        written = [path for path, time in _write_times(folder).items() if before.get(path) != time]
        write_json(folder / FINISHED, {**results, "files": digests(folder, written)})


def store_temperature(folder: Path, temperature: float) -> None:
    """Write a temperature into the config of a model, and its new checksum where the model was trained to its end.

    The old checksum goes first: a kill in between leaves the file unchecked, never a model that seems damaged.
    """
    path, finished = folder / "config.json", folder / FINISHED
    if not path.is_file() or (config := read_json(path)).get(TEMPERATURE) == temperature:
        return
    results = read_json(finished) if finished.is_file() else {}
    files = {name: value for name, value in results.get("files", {}).items() if name != path.name}
    if files:
        write_json(finished, {**results, "files": files})
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        temporary.write_text(json.dumps({**config, TEMPERATURE: temperature}, indent=2, sort_keys=True) + "\n", "utf-8")
        move(temporary, path)
    if files:
        write_json(finished, {**results, "files": {**files, **digests(folder, [path])}})


def _write_times(folder: Path) -> dict[Path, tuple[int, int]]:
    """When each file of a model was last written, with its inode, which tells two writes within one tick apart."""
    entries = [path for path in folder.iterdir() if not path.name.startswith((".", *NOT_SAVED))]
    files = [path for entry in entries for path in (entry, *entry.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
