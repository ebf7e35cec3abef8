"""Train one model of a run into its folder, or take it from there."""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.state import AcceleratorState
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from itrd_nlp.distillation.teacher_columns import teacher_columns
from itrd_nlp.experiments.finished import FINISHED, read_finished, save_finished
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.output_folder import locked
from itrd_nlp.experiments.trainings import Training
from itrd_nlp.models.loading import load_checkpoint
from itrd_nlp.models.projection import with_projection
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import Origin, last_checkpoint
from itrd_nlp.training.interruption import stoppable
from itrd_nlp.training.record import TIMINGS, Record
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import PeakMemory, parameter_count
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)


def build_trainer(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    arguments: ITRDArguments,
    task: Task,
    *,
    trains: bool = True,
    **options: Any,
) -> ITRDTrainer:
    """The trainer of one model on a task; without a teacher, in a model or in the data, it fine-tunes.

    Where it does not train, the training data is not even tokenised.
    """
    AcceleratorState._reset_state()  # metrics of ranks are evaluated in another precision, which it would keep
    trainer = ITRDTrainer(
        model=model,
        teacher_model=teacher,
        args=dataclasses.replace(arguments),  # new ones start accelerate anew: after a trainer with FSDP it has to be
        train_dataset=task.train_dataset if trains else None,
        eval_dataset=task.eval_dataset,
        data_collator=task.collator,
        processing_class=task.processor(model),
        compute_metrics=task.compute_metrics,
        **options,
    )
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    bar = None if on_terminal else trainer.pop_callback(ProgressCallback)  # it would fill a file
    if bar or trainer.pop_callback(PrinterCallback):
        trainer.add_callback(LogLines)
    return trainer


def train(
    model: PreTrainedModel, training: Training, task: Task, record: Record, role: str, teacher: str | None
) -> PreTrainedModel:
    """Train one row of the record into its folder, or take it from there when an earlier call has finished it.

    Args:
        model: to be trained.
        teacher: folder or Hub id, loaded only where the training distils, and here, so that nothing else keeps it in
            memory; None where its outputs are in the training data.

    Raises:
        UserError: the folder holds a finished model of another fingerprint, or is not shared by all machines.
    """
    results = ensure_trained(model, training, task, role, teacher)
    record.seconds[role], record.terms[role] = results["seconds"], results["terms"]
    for name in ("step_seconds", "peak_mib", "evaluations", "skipped_steps"):
        if results.get(name):
            getattr(record, name)[role] = results[name]
    if role == "student":  # an earlier version or another machine may have trained it
        for name, value in results.get("provenance", {}).items():
            setattr(record, name, value)
    if training.distils:
        record.parameters["projectors"] = results["projectors"]
        record.stored_teacher = results.get("stored_teacher")
    return with_projection(load_checkpoint(training.folder, task.model_class).model, training.folder)


def ensure_trained(
    model: PreTrainedModel, training: Training, task: Task, role: str, teacher: str | None = None
) -> dict[str, Any]:
    """Train a model into its folder unless an earlier call has finished it, and return what a record needs of that."""
    folder, arguments = training.folder, training.arguments
    results = from_first_rank(lambda: read_finished(folder, training.fingerprint), arguments)
    if results is not None:
        action = "reusing"
    elif role == "teacher":
        action = "fine-tuning in"
    else:
        action = f"training {'with' if training.distils else 'without'} distillation in"
    log_first(logger, arguments, f"[{role}] {action} {folder}")
    if results is None:
        with locked(folder, arguments, wait=True):
            # the call that had the lock may have finished the model
            if from_first_rank(lambda: read_finished(folder, training.fingerprint, remove=True), arguments) is None:
                with _own_wandb_run():
                    _train(model, training, task, teacher)
        results = from_first_rank(lambda: read_json(folder / FINISHED), arguments)
    if not training.is_finished:
        raise UserError(
            f"{folder}: the first process sees it, process {arguments.process_index} does not: expected a folder that "
            "all machines share"
        )
    return results


@contextmanager
def _own_wandb_run() -> Iterator[None]:
    """End the run of Weights & Biases that a training opens: transformers would log the next training into it, too."""

    def current() -> Any:
        return getattr(sys.modules.get("wandb"), "run", None)

    before = current()
    try:
        yield
    finally:
        if before is None and current() is not None:
            sys.modules["wandb"].finish()


def _train(model: PreTrainedModel, training: Training, task: Task, teacher: str | None) -> None:
    folder, arguments = training.folder, training.arguments
    checkpoint = from_first_rank(lambda: last_checkpoint(folder, training.fingerprint), arguments)
    clock = _Clock()
    with stoppable() as request:
        callbacks = [clock, Origin(training.fingerprint)]
        teacher_model = None
        if training.distils and teacher is not None:
            teacher_model = load_model(teacher, task.for_teacher, arguments.seed)[0]
        trainer = build_trainer(model, teacher_model, arguments, task, callbacks=callbacks)
        del teacher_model  # the trainer lets go of it once its outputs are cached
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        request.can_wait = True  # until what was trained is written
        if trainer.cache is not None:
            trainer.cache.release()
        with writing(folder):
            save_finished(
                trainer,
                task,
                folder,
                training.keeps_projection,
                {"fingerprint": training.fingerprint, "source": training.source, **_results(trainer, clock)},
            )
        trainer.accelerator.wait_for_everyone()


def _results(trainer: ITRDTrainer, clock: "_Clock") -> dict[str, Any]:
    """What a record needs of a training."""
    return {
        "seconds": clock.seconds(),
        "step_seconds": clock.step_seconds(),
        "peak_mib": clock.peak_mib(),
        "projectors": parameter_count(trainer.distiller.losses),
        "stored_teacher": None if teacher_columns(trainer.train_dataset) else trainer.cache is not None,
        "terms": [log for log in trainer.state.log_history if "loss" in log],
        "evaluations": _evaluations(trainer.state.log_history),
        "skipped_steps": trainer.nonfinite.skipped,
        "provenance": provenance(trainer.args.device),
    }


def _evaluations(logs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The metrics that were logged while training, under their own names, with their ``epoch``."""
    evaluations = [log for log in logs if "eval_runtime" in log]  # sentence encoders have no eval_loss
    others = ("step", *TIMINGS)
    return [{name.removeprefix("eval_"): x for name, x in log.items() if name not in others} for log in evaluations]


class LogLines(TrainerCallback):
    """One line for each log of a training: Trainer's own PrinterCallback writes to standard output, where tables go."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            rounded = {name: f"{x:.4g}" if isinstance(x, float) else x for name, x in logs.items()}
            logger.info({name: value for name, value in rounded.items() if name != "total_flos"})


class _Clock(TrainerCallback, ExportableState):
    """Seconds of a training, those before a kill included, as each checkpoint keeps them; memory since this start."""

    def __init__(self) -> None:
        self.started, self.before = time.perf_counter(), 0.0
        self.first_step, self.last_step, self.steps = 0.0, 0.0, 0
        self.memory: PeakMemory | None = None

    def seconds(self) -> float:
        return time.perf_counter() - self.started + self.before

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"before": self.seconds()}}

    def step_seconds(self) -> float | None:
        """Mean of this start's steps, with all that lies between them; None where it made none."""
        return (self.last_step - self.first_step) / self.steps if self.steps else None

    def peak_mib(self) -> float | None:
        return self.memory.mib() if self.memory and self.steps else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.before = state.stateful_callbacks[type(self).__name__]["attributes"]["before"]
        self.memory = PeakMemory(args.device)
        self.first_step = self.last_step = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.memory is not None:
            self.memory.update()
        self.last_step = time.perf_counter()
