"""One model: trained into its folder, and scored on the task's evaluation data."""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.output_folder import locked
from itrd_nlp.losses.distributed import from_first_rank
from itrd_nlp.models.loading import load_checkpoint
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.metrics import SCORES_VERSION
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import Origin, checkpoints, last_checkpoint
from itrd_nlp.training.fingerprint import scoring_values
from itrd_nlp.training.interruption import Request, stoppable
from itrd_nlp.training.record import Record
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import DamagedError, UserError, first_line, writing
from itrd_nlp.utils.hashing import damage, data_digest, digest, digests, json_values, weights_digest
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.modeling import PeakMemory, parameter_count

logger = logging.getLogger(__name__)

FINISHED = "finished.json"  # beside a model that was trained to its end
NOT_SAVED = ("checkpoint-", "runs", FINISHED)  # with a model: what else is written into its folder
ALL_PREDICTIONS = {  # what would leave some of them out of what is scored, or change their form
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "include_for_metrics": [],
}
AGREE = 10  # steps between two talks of several ranks on whether to stop


def build_trainer(
    model: PreTrainedModel, teacher: PreTrainedModel | None, arguments: ITRDArguments, task: Task, **options: Any
) -> ITRDTrainer:
    """The trainer of one model on a task; without a teacher it fine-tunes."""
    trainer = ITRDTrainer(
        model=model,
        teacher_model=teacher,
        args=arguments,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        data_collator=task.collator,
        processing_class=task.processor(model),
        compute_metrics=task.compute_metrics,
        **options,
    )
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not on_terminal and trainer.pop_callback(ProgressCallback):  # a bar would fill a file
        trainer.add_callback(PrinterCallback)
    return trainer


def train(
    model: PreTrainedModel,
    teacher: str | None,
    arguments: ITRDArguments,
    task: Task,
    record: Record,
    role: str,
    fingerprint: str,
) -> PreTrainedModel:
    """Train one row of the table into its folder, or take it from there when an earlier call has finished it.

    Args:
        teacher: folder or Hub id, loaded here so that nothing else holds it in memory; None fine-tunes.
        fingerprint: of all that decides the weights: only a model and checkpoints that carry it are taken.

    Raises:
        UserError: the folder holds a finished model of another fingerprint.
    """
    folder = Path(str(arguments.output_dir))
    result = from_first_rank(lambda: _finished(folder, fingerprint), arguments)
    if result is None:
        with locked(folder, arguments, wait=True):
            # nor has the call that was waited for done it
            if from_first_rank(lambda: _finished(folder, fingerprint, remove=True), arguments) is None:
                _train(model, teacher, arguments, task, fingerprint)
        result = from_first_rank(lambda: read_json(folder / FINISHED), arguments)
    if not (folder / FINISHED).is_file():
        raise UserError(
            f"{folder}: the first process sees it, process {arguments.process_index} does not: expected a folder that "
            "all machines share"
        )
    record.seconds[role], record.terms[role] = result["seconds"], result["terms"]
    if role == "student":  # which may have been made by an earlier version, or elsewhere
        for name, value in result.get("provenance", {}).items():
            setattr(record, name, value)
    for name in ("step_seconds", "peak_mib", "evaluations", "skipped_steps"):
        if result.get(name) not in (None, [], 0):
            getattr(record, name)[role] = result[name]
    if teacher is not None:
        record.parameters["projectors"] = result["projectors"]
        record.stored_teacher = result.get("stored_teacher")
    return load_checkpoint(folder, task.model_class).model


def _finished(folder: Path, fingerprint: str, remove: bool = False) -> dict[str, Any] | None:
    """What is known of a model that was trained to its end and is whole, or None.

    Args:
        fingerprint: that it must carry.
        remove: name a damaged one and forget that it was finished; for who has the folder's lock.
    """
    path = folder / FINISHED
    if not path.is_file():
        return None
    try:
        result = read_json(path)
        reason = damage(folder, result.get("files", {}))
    except DamagedError as error:
        reason = str(error)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({first_line(error)}): expected a finished model that you may read; name another "
            "folder"
        ) from None
    if reason is None and result.get("fingerprint") != fingerprint:
        raise UserError(
            f"{folder} holds a finished model of another run, or of an earlier version of itrd_nlp, which did not "
            "write down all that decides it: name another folder, or move it away"
        )
    if reason is None:
        return result
    if remove:
        logger.warning(f"[finished] {folder}: {reason}; made again from its last checkpoint")
        path.unlink(missing_ok=True)
    return None


def _train(model: PreTrainedModel, teacher: str | None, arguments: ITRDArguments, task: Task, fingerprint: str) -> None:
    folder = Path(str(arguments.output_dir))
    checkpoint = from_first_rank(lambda: last_checkpoint(folder, fingerprint), arguments)
    clock = _Clock()
    with stoppable() as request:
        trainer = build_trainer(
            model,
            None if teacher is None else load_model(teacher, task, arguments.seed)[0],
            arguments,
            task,
            callbacks=[clock, _Stop(request), Origin(fingerprint)],
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.cache is not None:
            trainer.cache.release()
        if request.reached:  # what was trained is in a checkpoint
            return
        with writing(folder):
            _save(trainer, task, folder, fingerprint, clock)
        trainer.accelerator.wait_for_everyone()


def _save(trainer: ITRDTrainer, task: Task, folder: Path, fingerprint: Any, clock: "_Clock") -> None:
    """Write a model that was trained to its end, and what a record has of it."""
    before = _written(folder)
    if trainer.is_world_process_zero():
        student = trainer.accelerator.unwrap_model(trainer.model).student
        for name, values in task.files(student).items():  # before the model, which may be pushed with them
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    trainer.save_model(_internal_call=True)  # the run pushes it, once it has its card
    if trainer.is_world_process_zero():
        result = {"fingerprint": fingerprint, **_result(trainer, clock)}
        result["files"] = digests(folder, [path for path, when in _written(folder).items() if before.get(path) != when])
        write_json(folder / FINISHED, result)


def earlier_models(folder: Path) -> list[Path]:
    """The models beside a folder, of its kind, that an earlier version trained or began: they carry no fingerprint."""
    found = []
    for other in sorted(folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*")):
        path, begun = other / FINISHED, checkpoints(other)
        try:
            unmarked = path.is_file() and "fingerprint" not in read_json(path)
        except DamagedError:  # told where it is taken
            continue
        if unmarked or (not path.is_file() and begun and not any(map(Origin.of, begun.values()))):
            found.append(other)
    return found


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    """When the files of a model in a folder were last written, of whatever kind: weights, configs, vocabularies.

    ``save_pretrained`` writes anew what it saves; the inode tells where a clock is too coarse.
    """
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", *NOT_SAVED))]
    files = [path for place in inside for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def _result(trainer: ITRDTrainer, clock: "_Clock") -> dict[str, Any]:
    """What a record has of a training."""
    return {
        "seconds": clock.seconds(),
        "step_seconds": clock.step_seconds(),
        "peak_mib": clock.peak_mib(),
        "projectors": parameter_count(trainer.accelerator.unwrap_model(trainer.model).losses),
        "stored_teacher": trainer.cache is not None,
        "terms": [log for log in trainer.state.log_history if "loss" in log],
        "evaluations": _evaluations(trainer.state.log_history),
        "skipped_steps": trainer.nonfinite.skipped,
        "provenance": provenance(trainer.args.device),
    }


def _evaluations(logs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What was measured on the evaluation data while training, with ``epoch``, under the metrics' own names."""
    found = [log for log in logs if "eval_runtime" in log]  # encoders of sentences have no eval_loss
    return [{k.removeprefix("eval_"): v for k, v in log.items() if "_second" not in k and k != "step"} for log in found]


def evaluate(
    model: PreTrainedModel, training_args: ITRDArguments, task: Task
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """The metrics on the evaluation data, e.g. ``{"exact_match": 81.5, "f1": 88.6}``, and those of each example."""
    as_it_is: dict[str, Any] = {"attn_implementation": None, **_precision(training_args, task), **ALL_PREDICTIONS}
    trainer = build_trainer(model, None, dataclasses.replace(private(training_args), **as_it_is), task)
    trainer.compute_metrics = None  # they are computed below, with those of each example
    found = trainer.predict(task.eval_dataset)
    metrics, examples = task.score(EvalPrediction(found.predictions, found.label_ids))
    return {key: value if isinstance(value, int) else float(value) for key, value in metrics.items()}, examples


def evaluate_once(
    model: PreTrainedModel, run_args: RunArguments, training_args: ITRDArguments, task: Task
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """:func:`evaluate`; what one run has found is kept beside the teachers for the next."""
    how = json_values({**scoring_values(training_args), **_precision(training_args, task)})
    plan = [weights_digest(model), data_digest(task.eval_dataset), task.scoring(), how, SCORES_VERSION]
    path = Path(run_args.shared_dir) / "evaluated" / f"{digest(plan)}.json"

    def look() -> dict[str, Any] | None:
        try:
            return read_json(path) if path.is_file() else None
        except DamagedError as error:
            logger.warning(f"[evaluated] {error}: made again")
            return None

    known = from_first_rank(look, training_args)
    if known is None:
        metrics, examples = evaluate(model, training_args, task)
        known = {"metrics": metrics, "examples": examples}
        if training_args.process_index == 0:
            make_folder(path.parent)
            write_json(path, known)
    return known["metrics"], known["examples"]


def _precision(training_args: ITRDArguments, task: Task) -> dict[str, bool]:
    """What a model is evaluated in: fp32 where the order of numbers counts, which half precision makes equal."""
    half = "spearman" not in task.metric_names
    names = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
    return {name: bool(getattr(training_args, name)) and half for name in names}


class _Stop(TrainerCallback):
    """Ends training, with a checkpoint, after the step in which a signal arrives."""

    def __init__(self, request: Request):
        self.request = request

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.request.can_wait = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1 and state.global_step % AGREE:  # several ranks stop together
            return
        if args.world_size > 1:
            self.request.number = max(gather_object([self.request.number]))
        if self.request.number:
            self.request.reached = f" after step {state.global_step} of {state.max_steps}"
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.request.reached and state.epoch % 1 and state.global_step < state.max_steps:  # what ends is no epoch
            control.should_save = control.should_evaluate = control.should_log = False


class _Clock(TrainerCallback, ExportableState):
    """Seconds of training, those before a kill included: each checkpoint keeps its own. Memory since this start."""

    def __init__(self) -> None:
        self.started, self.before = time.perf_counter(), 0.0
        self.first_step, self.steps = 0.0, 0
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
        self.memory = PeakMemory()
        self.first_step = self.last_step = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.last_step = time.perf_counter()


def private(training_args: ITRDArguments) -> ITRDArguments:
    """The same arguments for what is not to be published."""
    changes: dict[str, Any] = {"push_to_hub": False}
    return dataclasses.replace(training_args, **changes)
