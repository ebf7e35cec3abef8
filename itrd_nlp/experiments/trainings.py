"""How each model of a run is trained: its arguments, its folder and its fingerprint."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.finished import FINISHED
from itrd_nlp.experiments.output_folder import baseline_fingerprint, run_fingerprint
from itrd_nlp.experiments.recipes import with_changes
from itrd_nlp.experiments.suggestions import suggest
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.hashing import digest

# what a teacher's training inherits from the student's: where and how it runs, not what it learns
MACHINE_FIELDS = (
    *("use_cpu", "bf16", "fp16", "deepspeed", "fsdp", "fsdp_config", "torch_compile", "dataloader_num_workers"),
    *("report_to", "disable_tqdm", "logging_steps", "save_strategy", "save_steps", "save_total_limit"),
    "per_device_eval_batch_size",
)

# option -> the value that a run refuses, and why
ITSELF = (True, "a run continues by itself, exactly, from its own checkpoints; leave it out")
NEEDS_PREDICTIONS = "a task's metric needs all predictions; leave it out"
REFUSED_OPTIONS = {
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
    source: str | None = None  # folder or Hub id of a model that is fine-tuned

    @property
    def folder(self) -> Path:
        return Path(str(self.arguments.output_dir))

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINISHED).is_file()


def check_exact(training_args: ITRDArguments) -> None:
    """Raise :class:`UserError` where an option would keep a run from continuing exactly, or from being scored."""
    for option, (refused, reason) in REFUSED_OPTIONS.items():
        value = getattr(training_args, option)
        if bool(value) is refused:
            raise UserError(f"{option} {json.dumps(value)}: {reason}")


def without_publishing(training_args: ITRDArguments, **changes: Any) -> ITRDArguments:
    """A copy of the arguments with ``changes``, which uploads nothing."""
    return dataclasses.replace(training_args, **{"push_to_hub": False, **changes})


def baseline_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    """How the student trains without distillation, also on data that holds a teacher's outputs."""
    own = without_publishing(training_args, losses={})
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
    training = _shared_training(run_args, name, arguments, baseline_fingerprint(arguments, task, start))
    return training._replace(source=spec) if isinstance(spec, str) else training


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
        teacher: None where its outputs are in the training data.
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
        return dataclasses.replace(training_args, **with_changes(schedule, changes))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {one_line(error)}") from None
