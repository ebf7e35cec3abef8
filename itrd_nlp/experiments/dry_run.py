"""What a run would do: everything is loaded, two steps of each model are trained in memory, and the plan is printed."""

import copy
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from itrd_nlp.distillation.cache_folders import gib
from itrd_nlp.distillation.teacher_outputs import NotCached, plan_teacher_cache
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import make_student
from itrd_nlp.experiments.output_folder import baseline_fingerprint, check_reserved, run_fingerprint
from itrd_nlp.experiments.run import announced_task, check_exact, folders_of, load_teacher, plain_arguments
from itrd_nlp.experiments.train import FINISHED, build_trainer, private
from itrd_nlp.models.loading import load_checkpoint
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.batches import text_lengths
from itrd_nlp.utils.modeling import PeakMemory, parameter_count, size_mib
from itrd_nlp.utils.tables import Table

STEPS = 2  # of each model; the first one warms up
QUIET: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
QUIET |= {"report_to": "none", "disable_tqdm": True}
ADAM = 16  # bytes of a trained parameter in fp32: itself, its gradient, two moments


class Row(NamedTuple):
    """One model of the run; what is not trained has no numbers.

    Units: seconds, the teacher's pass over the data included; MiB.
    """

    doing: str
    steps: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    peak_mib: float | None = None
    state_mib: float = 0.0  # weights, gradients, Adam's moments, and the teacher's weights
    disk_mib: float = 0.0  # the model and its checkpoints


class Plan(NamedTuple):
    """What :func:`dry_run` has found: rows ``teacher``, ``baseline`` and ``student``, and the stored answers."""

    rows: dict[str, Row]
    cache: str
    cache_bytes: int  # to be written

    def table(self, name: str) -> Table:
        """A row for each model of the run of recipe ``name``; seconds, MiB."""
        columns = ["", "what", "steps", "s a step", "training", "peak MiB, two steps"]
        columns += ["MiB, weights + Adam", "MiB, disk"]
        lines = []
        for role, row in self.rows.items():
            numbers = [f"{row.steps:,}", f"{row.step_seconds:.3f}", f"~ {duration(row.seconds)}"]
            numbers += ["" if row.peak_mib is None else f"{row.peak_mib:.0f}"]
            numbers += [f"{row.state_mib:.1f}", f"{row.disk_mib:.1f}"]
            lines.append([role, row.doing, *(numbers if row.steps else [""] * 6)])
        return Table(f"Plan of `{name}`; nothing was kept:", columns, lines)


def dry_run(run_args: RunArguments, training_args: ITRDArguments) -> Plan:
    """Load what :func:`~itrd_nlp.experiments.run.run` would, train two steps of each model, and keep nothing.

    Times are those of the second step, for texts of the data's mean length; evaluation is left out. A student whose
    teacher is still to be fine-tuned is measured with the untrained one.

    Raises:
        UserError: what the run would refuse.
    """
    check_exact(training_args)
    task, output = announced_task(run_args, training_args), Path(str(training_args.output_dir))
    with training_args.main_process_first(desc="tokenising"):
        _ = task.train_dataset, task.eval_dataset
    with tempfile.TemporaryDirectory() as aside:
        elsewhere = dataclasses.replace(training_args, output_dir=aside)
        teacher, source, tuning = load_teacher(run_args, elsewhere, task)
        kept = tuning is not None and (Path(source) / FINISHED).is_file()
        rows, cache, to_write = {"teacher": Row("given")}, "not used, nothing is distilled", 0
        if kept:
            teacher, rows = load_checkpoint(source, task.model_class).model, {"teacher": Row(f"reused: {source}")}
        elif tuning is not None:
            rows = {"teacher": _measured(_trial(teacher, None, tuning.arguments, task, aside), tuning.arguments)}
        start, _ = make_student(run_args.student, task, teacher, training_args.seed)
        plain = plain_arguments(run_args, training_args)
        baseline = baseline_fingerprint(plain, task, start)
        known = kept or tuning is None
        plan = run_fingerprint(training_args, baseline, teacher)
        changed = check_reserved(output, plan, run_args.overwrite) if known else ["teacher"]
        for role, folder in folders_of(run_args, training_args, baseline).items():
            distils = role == "student" and bool(training_args.losses)
            if role == "baseline" and not task.labelled:
                rows[role] = Row("as it starts: without labels there is nothing else to learn from")
                continue
            if (folder / FINISHED).is_file() and not (changed and distils):
                rows[role] = Row(f"reused: {folder}")
                continue
            arguments = training_args if distils else plain
            trainer = _trial(start, teacher if distils else None, arguments, task, aside)
            missing = None
            if distils:
                cache, size, to_write = _stored(trainer)
                missing = to_write / size if size else None
            rows[role] = _measured(trainer, arguments, missing)
    return Plan(rows, cache, to_write)


def _trial(
    model: PreTrainedModel, teacher: PreTrainedModel | None, arguments: ITRDArguments, task: Task, aside: str
) -> ITRDTrainer:
    """The trainer of a row, of copies, that writes nothing and says nothing."""
    arguments = dataclasses.replace(private(arguments), output_dir=aside, **QUIET)
    trainer = build_trainer(copy.deepcopy(model), copy.deepcopy(teacher), arguments, task)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _stored(trainer: ITRDTrainer) -> tuple[str, int, int]:
    """Where the teacher's answers would be kept, in words; their bytes, and those to be written."""
    if trainer.args.teacher_cache == "off" or trainer.teacher is None:
        return "off: the teacher is asked about each batch", 0, 0
    try:
        cache, missing = plan_teacher_cache(trainer.teacher_source())
    except NotCached as reason:
        return f"not used, the teacher is asked about each batch: {reason}", 0, 0
    needed = cache.bytes_of(len(missing))
    return f"{gib(cache.size)} in {cache.folder}, {gib(needed)} of it to be written", cache.size, needed


def _measured(trainer: ITRDTrainer, asked: ITRDArguments, missing: float | None = None) -> Row:
    """Two steps, and what they say about all.

    Args:
        asked: the arguments of the row, which say when it saves.
        missing: share of the teacher's answers that are yet to be stored, before training; None asks it at each step.
    """
    trainer.args.teacher_cache = "off"
    lengths = text_lengths(trainer.train_dataset, trainer.args.length_column_name)
    units = (sum(lengths) if lengths else len(trainer.train_dataset)) / trainer.args.world_size
    watch = _Watch(trainer, bool(lengths))
    trainer.add_callback(watch)
    trainer.train()
    scale = units * trainer.args.gradient_accumulation_steps / watch.batches / watch.units
    step = scale * (watch.step_seconds - (0.0 if missing is None else watch.teacher_seconds))
    asking = (missing or 0.0) * watch.teacher_seconds * units / watch.units
    student = trainer.student
    teacher_mib = size_mib(trainer.teacher) if trainer.teacher is not None else 0.0
    state = ADAM * parameter_count(trainer.accelerator.unwrap_model(trainer.model)) / 2**20 + teacher_mib
    disk = size_mib(student) * (1 + 3 * _checkpoints(asked, watch))
    return Row("trained", watch.steps, step, watch.steps * step + asking, watch.peak_mib, state, disk)


def _checkpoints(args: ITRDArguments, watch: "_Watch") -> int:
    """How many a training keeps at a time; each has the weights and Adam's two moments."""
    epochs = -(-watch.steps * args.gradient_accumulation_steps // watch.batches)
    each = {"no": 0, "epoch": epochs, "steps": watch.steps // max(1, int(args.save_steps)), "best": 1}
    saves = each[str(getattr(args.save_strategy, "value", args.save_strategy))]
    return saves if args.save_total_limit is None else min(saves, args.save_total_limit)


class _Watch(TrainerCallback):
    """Times a step and the teacher's part in it, counts its tokens or images, and ends training after the second."""

    def __init__(self, trainer: ITRDTrainer, tokens: bool):
        self.tokens = tokens
        self.steps = self.batches = self.units = 0
        self.step_seconds = self.teacher_seconds = self.begun = 0.0
        self.peak_mib: float | None = None
        trainer.model.register_forward_pre_hook(self._count, with_kwargs=True)
        if trainer.teacher is not None:
            trainer.teacher.register_forward_pre_hook(self._teacher_begins)
            trainer.teacher.register_forward_hook(self._teacher_ends)

    def _count(self, module: Any, args: Any, batch: Mapping[str, Any]) -> None:
        if self.tokens:
            self.units += int(batch["attention_mask"].sum())
        else:
            self.units += len(next(value for value in batch.values() if isinstance(value, torch.Tensor)))

    def _teacher_begins(self, module: Any, args: Any) -> None:
        self.begun = _now()

    def _teacher_ends(self, module: Any, args: Any, output: Any) -> None:
        self.teacher_seconds += _now() - self.begun

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        self.steps, self.batches = state.max_steps, len(train_dataloader)
        self.memory, self.last = PeakMemory(), _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = _now()
        self.step_seconds, self.last = now - self.last, now
        if state.global_step < min(STEPS, self.steps):
            self.units, self.teacher_seconds = 0, 0.0
        else:
            self.peak_mib = self.memory.mib()
            control.should_training_stop = True


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def summary(plan: Plan, run_args: RunArguments, training_args: ITRDArguments) -> str:
    """What the table does not say: time in all, stored answers, and disk."""
    trained = [row for row in plan.rows.values() if row.steps]
    lines = [f"training: ~ {duration(sum(row.seconds for row in trained))} in all; evaluation comes on top"]
    lines.append(f"teacher cache: {plan.cache}")
    student = plan.rows["student"].disk_mib if training_args.losses else 0.0
    shared = sum(row.disk_mib for row in trained) - student
    for name, place, mib in (
        ("output_dir", training_args.output_dir, student),
        ("shared_dir", run_args.shared_dir, shared),
    ):
        folder = Path(str(place)).absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        lines.append(f"{name}: {place}, {gib(mib * 2**20)} of {gib(shutil.disk_usage(existing).free)} free")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(3.2), duration(200), duration(7500)
        ('3.2 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
