"""How each model of a run is trained: its arguments, its folder and its fingerprint; and the files of a finished one.

A finished model was trained to its end. It carries checksums, which are compared before it is reused.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.output_folder import baseline_fingerprint, run_fingerprint
from itrd_nlp.experiments.recipes import changed
from itrd_nlp.experiments.suggestions import suggest
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.models.projection import embedding_projection, projected_width, save_projection
from itrd_nlp.models.sentence_pooling import with_dense, write_files
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.errors import DamagedError, UserError, one_line
from itrd_nlp.utils.hashing import damage, digest, digests
from itrd_nlp.utils.io import make_folder, read_json, write_atomically, write_json
from itrd_nlp.utils.tokenizers import save_processor

logger = logging.getLogger(__name__)

FINISHED = "finished.json"  # beside a model that was trained to its end
NOT_SAVED = ("checkpoint-", "runs", FINISHED)  # in a model's folder, but not part of the model

# what a teacher's training inherits from the student's: where and how it runs, not what it learns
MACHINE_FIELDS = (
    *("use_cpu", "bf16", "fp16", "deepspeed", "fsdp", "fsdp_config", "torch_compile", "dataloader_num_workers"),
    *("report_to", "disable_tqdm", "logging_steps", "save_strategy", "save_steps", "save_total_limit"),
    "per_device_eval_batch_size",
)

# option -> the value that a run refuses, and why
ITSELF = (True, "a run continues by itself, exactly, from its own checkpoints; leave it out")
NEEDS_PREDICTIONS = "a task's metric needs all predictions; leave it out"
UNFIT = {
    "resume_from_checkpoint": ITSELF,
    "save_only_model": ITSELF,
    "ignore_data_skip": ITSELF,
    "restore_callback_states_from_checkpoint": ITSELF,
    "auto_find_batch_size": (True, "a run is the same on every machine; set per_device_train_batch_size"),
    "dataloader_in_order": (False, "a run takes its examples in an order that can be repeated; leave it out"),
    "batch_eval_metrics": (True, NEEDS_PREDICTIONS),
    "eval_do_concat_batches": (False, NEEDS_PREDICTIONS),
    "prediction_loss_only": (True, "a run is scored by its predictions; leave it out"),
}


class Training(NamedTuple):
    """How one model of a run is trained."""

    arguments: ITRDArguments  # output_dir is the model's own folder
    fingerprint: str
    distils: bool = False
    keeps_projection: bool = False

    @property
    def folder(self) -> Path:
        return Path(str(self.arguments.output_dir))

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINISHED).is_file()


def check_exact(training_args: ITRDArguments) -> None:
    """Raise :class:`UserError` where an option would keep a run from continuing exactly, or from being scored."""
    for option, (refused, reason) in UNFIT.items():
        value = getattr(training_args, option)
        if bool(value) is refused:
            raise UserError(f"{option} {json.dumps(value)}: {reason}")


def private(training_args: ITRDArguments, **changes: Any) -> ITRDArguments:
    """The arguments with some changed, for what is not published."""
    return dataclasses.replace(training_args, **{"push_to_hub": False, **changes})


def baseline_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    """How the student trains without distillation, also on data that holds a teacher's outputs."""
    own = private(training_args, losses={})
    return _with_changes(own, run_args.baseline_training, "baseline_training") if training_args.losses else own


def teacher_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    """How a teacher is fine-tuned: as ``teacher_training`` says, so that all recipes and seeds share it."""
    inherited = {name: getattr(training_args, name) for name in MACHINE_FIELDS}
    if inherited["save_strategy"] == "best":  # by the student's metric
        inherited["save_strategy"] = "epoch"
    own = ITRDArguments(output_dir=training_args.output_dir, **inherited)
    return _with_changes(own, run_args.teacher_training, "teacher_training")


def teacher_training(run_args: RunArguments, arguments: ITRDArguments, task: Task, start: PreTrainedModel) -> Training:
    """The training of a teacher on its own task, in a folder where other runs find it."""
    spec = run_args.teacher
    name = Path(spec).name if isinstance(spec, str) else spec.get("timm") or spec["model_type"]
    return _shared_training(run_args, name, arguments, baseline_fingerprint(arguments, task, start))


def student_trainings(
    run_args: RunArguments,
    training_args: ITRDArguments,
    task: Task,
    start: PreTrainedModel,
    teacher: PreTrainedModel | None,
) -> tuple[dict[str, Any], dict[str, Training]]:
    """The fingerprint of a run, and the trainings of its students by their row in the record.

    Args:
        start: the student, before it is trained.
        teacher: None where its outputs stand in the training data.
    """
    baseline_args = baseline_arguments(run_args, training_args)
    of_baseline = baseline_fingerprint(baseline_args, task, start)
    outputs = task.train_dataset if teacher is None else teacher
    fingerprint = run_fingerprint(training_args, of_baseline, outputs, task, run_args.keep_projection)
    baseline = _shared_training(run_args, "undistilled", baseline_args, of_baseline)
    if not training_args.losses:
        return fingerprint, {"student": baseline}
    folder = Path(str(training_args.output_dir)) / "student"
    arguments = dataclasses.replace(training_args, output_dir=str(folder))
    student = Training(arguments, digest(fingerprint), distils=True, keeps_projection=run_args.keep_projection)
    return fingerprint, {"baseline": baseline, "student": student} if run_args.baseline else {"student": student}


def _shared_training(
    run_args: RunArguments, name: str, arguments: ITRDArguments, fingerprint: Mapping[str, Any]
) -> Training:
    folder = Path(run_args.shared_dir) / f"{name}-{digest(fingerprint)}"
    return Training(dataclasses.replace(arguments, output_dir=str(folder)), digest(fingerprint))


def _with_changes(training_args: ITRDArguments, changes: Mapping[str, Any], name: str) -> ITRDArguments:
    """The arguments with what the mapping ``name`` of a recipe sets."""
    known = {field.name for field in dataclasses.fields(ITRDArguments)}
    for key in changes:
        if key not in known:
            raise UserError(f"{name}: unknown key {key!r}; expected a training argument{suggest(key, known)}")
    schedule = {key: getattr(training_args, key) for key in ("num_train_epochs", "lr_milestones")}
    try:
        return dataclasses.replace(training_args, **changed(schedule, changes))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {one_line(error)}") from None


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


def store_temperature(folder: Path, temperature: float | None) -> None:
    """Write a temperature into the config of a model; None removes that of an earlier run."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if temperature is not None or TEMPERATURE in config:
        config.pop(TEMPERATURE, None)
        config |= {} if temperature is None else {TEMPERATURE: temperature}
        _replace(folder, {"config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()})


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
        _replace(folder, {str(path.relative_to(new)): path.read_bytes() for path in new.rglob("*") if path.is_file()})


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
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
