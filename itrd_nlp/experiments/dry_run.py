"""What a run would do: everything is loaded, each model takes two steps in memory, and the plan is printed."""

import copy
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from itrd_nlp.distillation.cache_folders import gib
from itrd_nlp.distillation.teacher_outputs import NotCached, plan_teacher_cache
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import make_student
from itrd_nlp.experiments.output_folder import check_reserved
from itrd_nlp.experiments.run import NO_LABELS, check_run, check_selection, load_teacher
from itrd_nlp.experiments.tasks import tokenised_task
from itrd_nlp.experiments.train import LogLines, build_trainer
from itrd_nlp.experiments.trainings import Training, student_trainings, without_publishing
from itrd_nlp.models.loading import load_checkpoint
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import FOLLOWERS
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.batches import text_lengths
from itrd_nlp.utils.io import existing_parent
from itrd_nlp.utils.modeling import PeakMemory, size_mib
from itrd_nlp.utils.tables import Table

STEPS = 2  # of each model; the first one warms up
QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
}


class Row(NamedTuple):
    """One model of the run; a model that is not trained has no numbers."""

    doing: str
    steps: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0  # of all steps, and of caching the teacher's outputs
    peak_mib: float | None = None
    disk_mib: float = 0.0  # the model and its checkpoints


class Plan(NamedTuple):
    """What :func:`dry_run` measured: rows ``teacher``, ``baseline`` and ``student``, and the teacher cache."""

    rows: dict[str, Row]
    cache: str
    cache_bytes: int  # to be written

    def table(self, name: str) -> Table:
        """A row for each model of the run of recipe ``name``."""
        columns = ["", "what", "steps", "s a step", "training, h:mm:ss", "peak MiB, two steps", "MiB, disk"]
        rows = []
        for role, row in self.rows.items():
            peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
            numbers = [f"{row.steps:,}", f"{row.step_seconds:.3f}", duration(row.seconds), peak, f"{row.disk_mib:.1f}"]
            rows.append([role, row.doing, *(numbers if row.steps else [""] * len(numbers))])
        return Table(f"Plan of `{name}`; nothing was kept:", columns, rows)


def dry_run(run_args: RunArguments, training_args: ITRDArguments) -> Plan:
    """Load what :func:`~itrd_nlp.experiments.run.run` would, train two steps of each model, and keep nothing.

    Times are those of the second step, for texts of the data's mean length; evaluation is left out. A student whose
    teacher is still to be fine-tuned is measured with the untrained one.

    Raises:
        UserError: what the run would refuse.
    """
    check_run(run_args, training_args)
    task = tokenised_task(run_args, training_args)
    check_selection(run_args, training_args, task)
    with tempfile.TemporaryDirectory() as folder:
        teacher, tuning = load_teacher(run_args, without_publishing(training_args, output_dir=folder), task)
        source = "its outputs are in the training data" if teacher is None else "given"
        rows, cache, cache_bytes = {"teacher": Row(source)}, "not used, nothing is distilled", 0
        if tuning is not None and tuning.is_finished:
            teacher, rows["teacher"] = load_checkpoint(tuning.folder, task.model_class).model, _reused(tuning)
        elif teacher is not None and tuning is not None:
            rows["teacher"] = _measure(_trial(teacher, None, tuning, task.for_teacher, folder), tuning)
        untrained = tuning is not None and not tuning.is_finished
        start, _ = make_student(run_args.student, task, teacher, training_args.seed, trial=untrained)
        fingerprint, trainings = student_trainings(run_args, training_args, task, start, teacher)
        is_new = True  # as a teacher that is still to be trained makes it
        if not untrained:
            is_new = bool(check_reserved(Path(str(training_args.output_dir)), fingerprint, run_args.overwrite))
        for role, training in trainings.items():
            if role == "baseline" and not task.labelled:
                rows[role] = Row(NO_LABELS)
            elif training.is_finished and not (training.distils and is_new):
                rows[role] = _reused(training)
            else:
                trainer = _trial(start, teacher if training.distils else None, training, task, folder)
                uncached = None
                if training.distils:
                    cache, cache_bytes, uncached = _plan_cache(trainer)
                rows[role] = _measure(trainer, training, uncached)
    return Plan(rows, cache, cache_bytes)


def _reused(training: Training) -> Row:
    return Row(f"reused: {training.folder}")


def _trial(
    model: PreTrainedModel, teacher: PreTrainedModel | None, training: Training, task: Task, folder: str
) -> ITRDTrainer:
    """The trainer of a row, on copies of the models; it writes and prints nothing."""
    counting = "non_padding" if task.modality == "text" else "no"  # tokens, to scale a step to the data's mean length
    changes = {**QUIET, "output_dir": folder, "include_num_input_tokens_seen": counting}
    if training.arguments.lr_scheduler_type in FOLLOWERS:  # which ask for an evaluation
        changes |= {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
    arguments = without_publishing(training.arguments, **changes)
    trainer = build_trainer(copy.deepcopy(model), copy.deepcopy(teacher), arguments, task)
    trainer.remove_callback(LogLines)
    return trainer


def _plan_cache(trainer: ITRDTrainer) -> tuple[str, int, float | None]:
    """Where the teacher's outputs would be cached, the bytes to be written, and their share; None without a cache."""
    if trainer.teacher is None:
        return "not used, the teacher's outputs are in the training data", 0, None
    if trainer.args.teacher_cache == "off":
        return "off: the teacher runs on each batch", 0, None
    try:
        cache, missing = plan_teacher_cache(trainer.teacher_source())
    except NotCached as reason:
        return f"not used, the teacher runs on each batch: {reason}", 0, None
    needed = cache.bytes_of(missing)
    return f"{gib(cache.size)} in {cache.folder}, {gib(needed)} of it to be written", needed, needed / cache.size


def _measure(trainer: ITRDTrainer, training: Training, uncached: float | None = None) -> Row:
    """Train two steps, and scale the second one to the whole training.

    Args:
        uncached: share of the teacher's outputs that are computed before training; None runs it in each step.
    """
    trainer.args.teacher_cache = "off"
    teacher_mib = 0.0 if trainer.teacher is None else size_mib(trainer.teacher)
    watch = _Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    steps_per_epoch = watch.batches / trainer.args.gradient_accumulation_steps
    lengths, scale = text_lengths(trainer.train_dataset, trainer.args.length_column_name), 1.0
    share = trainer.share_of_epoch() or 1.0
    if lengths and watch.tokens:
        scale = sum(lengths) * share / steps_per_epoch / watch.tokens
    step, teacher_pass, peak = scale * watch.step_seconds, 0.0, watch.peak_mib
    if uncached is not None:
        if peak is not None:  # the run lets go of the teacher; on a CPU, the one that this is a copy of is there, too
            peak -= teacher_mib * (1 if trainer.args.device.type == "cuda" else 2)
        step -= scale * watch.teacher_seconds
        teacher_pass = uncached * scale * watch.teacher_seconds * steps_per_epoch / share  # over all examples
    disk = size_mib(trainer.student) * (1 + 3 * _checkpoints(training.arguments, watch.steps, steps_per_epoch))
    return Row("trained", watch.steps, step, watch.steps * step + teacher_pass, peak, disk)


def _checkpoints(args: ITRDArguments, steps: int, steps_per_epoch: float) -> int:
    """How many checkpoints a training keeps at a time; each holds the weights and Adam's two moments."""
    epochs = math.ceil(steps / steps_per_epoch)
    saves = {"no": 0, "epoch": epochs, "best": epochs, "steps": steps // max(1, int(args.save_steps))}
    count = saves[SaveStrategy(args.save_strategy).value]
    return count if args.save_total_limit is None else min(count, args.save_total_limit)


class _Watch(TrainerCallback):
    """Times the second step and the teacher's part in it, counts its tokens, and then ends training."""

    def __init__(self, trainer: ITRDTrainer):
        self.steps = self.batches = self.tokens = self.tokens_before = 0
        self.step_seconds = self.teacher_seconds = self.step_began = self.teacher_began = 0.0
        self.peak_mib: float | None = None
        if trainer.teacher is not None:
            trainer.teacher.register_forward_pre_hook(self._teacher_begins)
            trainer.teacher.register_forward_hook(self._teacher_ends, always_call=True)  # hooks of features stop it

    def _teacher_begins(self, module: Any, args: Any) -> None:
        self.teacher_began = _now()

    def _teacher_ends(self, module: Any, args: Any, output: Any) -> None:
        self.teacher_seconds += _now() - self.teacher_began

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        self.steps, self.batches = state.max_steps, len(train_dataloader)
        self.memory, self.step_began = PeakMemory(args.device), _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, tokens = _now(), state.num_input_tokens_seen
        self.step_seconds, self.step_began = now - self.step_began, now
        self.tokens, self.tokens_before = tokens - self.tokens_before, tokens
        if state.global_step < min(STEPS, self.steps):
            self.teacher_seconds = 0.0
        else:
            self.peak_mib = self.memory.mib()
            control.should_training_stop = True


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def summary(plan: Plan, run_args: RunArguments, training_args: ITRDArguments) -> str:
    """What the table does not show: total time, the teacher cache, and disk."""
    trained = {role: row for role, row in plan.rows.items() if row.steps}
    seconds = sum(row.seconds for row in trained.values())
    lines = [
        f"training: ~ {duration(seconds)} (h:mm:ss) in all; evaluation comes on top",
        f"teacher cache: {plan.cache}",
    ]
    student = plan.rows["student"].disk_mib if training_args.losses else 0.0
    shared = sum(row.disk_mib for row in trained.values()) - student
    folders = {"output_dir": (training_args.output_dir, student), "shared_dir": (run_args.shared_dir, shared)}
    for name, (folder, mib) in folders.items():
        free = shutil.disk_usage(existing_parent(Path(str(folder)))).free
        lines.append(f"{name}: {folder}, {gib(mib * 2**20)} of {gib(free)} free")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(7500.2)
        '2:05:00'
        >>> duration(90000)
        '25:00:00'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
