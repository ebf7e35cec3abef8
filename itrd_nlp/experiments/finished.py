"""Models that were trained to their end: written with checksums, which are compared before one is reused."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.models.projection import embedding_projection, projected_width, save_projection
from itrd_nlp.models.sentence_pooling import with_dense, write_files
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.errors import DamagedError, UserError, one_line
from itrd_nlp.utils.hashing import digests, first_damage
from itrd_nlp.utils.io import make_folder, read_json, write_atomically, write_json
from itrd_nlp.utils.tokenizers import save_processor

logger = logging.getLogger(__name__)

FINISHED = "finished.json"  # beside a model that was trained to its end
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
        reason = first_damage(folder, results.get("files", {}))
    except DamagedError as error:
        reason = str(error)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({one_line(error)}): expected a finished model that you may read; name another "
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
        write_files(files, folder)  # before the model, which may be pushed with them
    if trainer.is_fsdp_enabled:  # accelerate's default writes shards, which no library loads
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(_internal_call=True)  # the run pushes it, once it has its card
    if trainer.is_world_process_zero():
        written = [path for path, time in _write_times(folder).items() if before.get(path) != time]
        write_json(folder / FINISHED, {**results, "files": digests(folder, written)})


def base_model_of(folder: str) -> str:
    """What the model in a folder was fine-tuned from; the folder itself, or Hub id, where that is not known."""
    path = Path(folder) / FINISHED
    return (read_json(path).get("source") if path.is_file() else None) or folder


def store_temperature(folder: Path, temperature: float | None) -> None:
    """Write a temperature into the config of a model; None removes that of an earlier run."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if temperature is not None or TEMPERATURE in config:
        config.pop(TEMPERATURE, None)
        config |= {} if temperature is None else {TEMPERATURE: temperature}
        _write_changed(folder, {"config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()})


def renew_files(folder: Path, student: PreTrainedModel, task: Task) -> None:
    """Write what a finished student's folder holds beside its weights as this run's task says.

    A tokenizer or length may have changed, and the tokens of the training data not, which decide whether it is reused.
    """
    with tempfile.TemporaryDirectory() as name:
        new = Path(name)
        if processor := task.processor(student):
            save_processor(processor, new)
        if files := task.files(student):
            write_files(with_dense(files) if projected_width(student) else files, new)
        _write_changed(
            folder, {str(path.relative_to(new)): path.read_bytes() for path in new.rglob("*") if path.is_file()}
        )


def _write_changed(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files that differ, and their new checksums where the model in the folder was trained to its end.

    Old checksums go first: a kill in between leaves a file unchecked, never a model that seems damaged.
    """
    finished = folder / FINISHED
    results = read_json(finished) if finished.is_file() else {}
    listed = results.get("files", {})
    names = [
        name for name, content in files.items() if not _holds(folder / name, content) or (listed and name not in listed)
    ]
    if not names:
        return
    if listed:
        write_json(finished, {**results, "files": {name: each for name, each in listed.items() if name not in names}})
    for name in names:
        make_folder((folder / name).parent)
        write_atomically(folder / name, files[name])
    if listed:
        new = digests(folder, [folder / name for name in names])
        write_json(finished, {**results, "files": {**listed, **new}})


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _write_times(folder: Path) -> dict[Path, tuple[int, int]]:
    """When each file of a model was last written, with its inode, which tells two writes within one tick apart."""
    entries = [path for path in folder.iterdir() if not path.name.startswith((".", *NOT_SAVED))]
    files = [path for entry in entries for path in (entry, *entry.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
