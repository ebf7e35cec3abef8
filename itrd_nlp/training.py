"""One model: trained into its folder, and scored on the task's evaluation data."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from itrd_nlp.arguments import ITRDArguments, RunArguments
from itrd_nlp.measure import PeakMemory, parameter_count
from itrd_nlp.models import load_model
from itrd_nlp.plan import data_digest, digest, held, last_checkpoint, weights_digest, write_json
from itrd_nlp.record import Record
from itrd_nlp.task import Task
from itrd_nlp.trainer import ITRDTrainer


def build_trainer(
    model: PreTrainedModel, teacher: PreTrainedModel | None, arguments: ITRDArguments, task: Task, **options: Any
) -> ITRDTrainer:
    """The trainer of one model on a task; without a teacher it fine-tunes."""
    return ITRDTrainer(
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


def train(
    model: PreTrainedModel,
    teacher: str | None,
    arguments: ITRDArguments,
    task: Task,
    record: Record,
    role: str,
) -> PreTrainedModel:
    """Train one row of the table into its folder, or take it from there when an earlier call has finished it.

    Args:
        teacher: folder or Hub id, loaded here so that nothing else holds it in memory; None fine-tunes.
    """
    folder = Path(str(arguments.output_dir))
    finished = folder / "finished.json"
    if not finished.is_file():
        with held(folder, arguments, wait=True):
            if not finished.is_file():  # nor has the call that was waited for done it
                _train(model, teacher, arguments, task)
    result = json.loads(finished.read_text())
    record.seconds[role], record.terms[role] = result["seconds"], result["terms"]
    for name in ("step_seconds", "peak_mib", "evaluations"):
        if result.get(name) not in (None, []):
            getattr(record, name)[role] = result[name]
    if teacher is not None:
        record.parameters["projectors"] = result["projectors"]
        record.stored_teacher = result.get("stored_teacher")
    return task.model_class.from_pretrained(folder)


def _train(model: PreTrainedModel, teacher: str | None, arguments: ITRDArguments, task: Task) -> None:
    folder = Path(str(arguments.output_dir))
    checkpoint = last_checkpoint(folder)
    clock = _Clock(checkpoint)
    trainer = build_trainer(
        model,
        None if teacher is None else load_model(teacher, task, arguments.seed)[0],
        arguments,
        task,
        callbacks=[clock],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        result = {
            "seconds": clock.seconds(),
            "step_seconds": clock.step_seconds(),
            "peak_mib": clock.peak_mib(),
            "projectors": parameter_count(trainer.accelerator.unwrap_model(trainer.model).losses),
            "stored_teacher": trainer.cache is not None,
            "terms": [log for log in trainer.state.log_history if "loss" in log],
            "evaluations": _evaluations(trainer.state.log_history),
        }
        write_json(folder / "finished.json", result)
    trainer.accelerator.wait_for_everyone()


def _evaluations(logs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What was measured on the evaluation data while training, with ``epoch``, under the metrics' own names."""
    found = [log for log in logs if "eval_loss" in log]
    return [{k.removeprefix("eval_"): v for k, v in log.items() if "_second" not in k and k != "step"} for log in found]


def evaluate(
    model: PreTrainedModel, training_args: ITRDArguments, task: Task
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The metrics on the evaluation data, e.g. ``{"exact_match": 81.5, "f1": 88.6}``, and those of each example."""
    as_it_is: dict[str, Any] = {"attn_implementation": None}
    trainer = build_trainer(model, None, dataclasses.replace(private(training_args), **as_it_is), task)
    trainer.compute_metrics = None  # they are computed below, with those of each example
    found = trainer.predict(task.eval_dataset)
    metrics, examples = task.score(EvalPrediction(found.predictions, found.label_ids))
    return {key: float(value) for key, value in metrics.items()}, examples


def evaluate_once(
    model: PreTrainedModel, run_args: RunArguments, training_args: ITRDArguments, task: Task
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """:func:`evaluate`; what one run has found is kept beside the teachers for the next."""
    precision = [training_args.bf16, training_args.fp16]
    plan = [weights_digest(model), data_digest(task.eval_dataset), task.scoring(), precision]
    path = Path(run_args.shared_dir) / "evaluated" / f"{digest(plan)}.json"
    with training_args.main_process_first(desc="looking for an earlier evaluation"):
        known = json.loads(path.read_text()) if path.is_file() else None
    if known is None:
        known = evaluate(model, training_args, task)
        if training_args.process_index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return known[0], known[1]


class _Clock(TrainerCallback):
    """Seconds of training, those before a kill included: each checkpoint keeps its own. Memory since this start."""

    def __init__(self, checkpoint: Path | None):
        file = checkpoint / "clock.json" if checkpoint else None
        before = json.loads(file.read_text()) if file and file.is_file() else 0.0
        self.started = time.perf_counter() - before
        self.first_step, self.steps = 0.0, 0
        self.memory: PeakMemory | None = None

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def step_seconds(self) -> float | None:
        """Mean of this start's steps, with all that lies between them; None where it made none."""
        return (self.last_step - self.first_step) / self.steps if self.steps else None

    def peak_mib(self) -> float | None:
        return self.memory.mib() if self.memory and self.steps else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory = PeakMemory()
        self.first_step = self.last_step = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.last_step = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "clock.json", self.seconds())


def private(training_args: ITRDArguments) -> ITRDArguments:
    """The same arguments for what is not to be published."""
    changes: dict[str, Any] = {"push_to_hub": False}
    return dataclasses.replace(training_args, **changes)
