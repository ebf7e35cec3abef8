"""What a run measures of its models, and what it writes at its end: record, student and card."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.finished import base_model_of, renew_files, store_temperature
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.scoring import Scores, evaluate_once, predict, scores_of
from itrd_nlp.export.latency import forward_times, texts_for
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.model_card import OUTPUTS, write_card
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record
from itrd_nlp.utils.io import write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit
from itrd_nlp.utils.tokenizers import save_processor

BATCHES = (1, 32)  # texts or images at once, of which the latency is measured


def measure(
    record: Record,
    role: str,
    model: PreTrainedModel,
    run_args: RunArguments,
    arguments: ITRDArguments,
    task: Task,
    documents: Any = None,
) -> None:
    """Scores, parameters and size of one row; where the teacher's ``documents`` are given, also of search in them."""
    _record_scores(record, role, evaluate_once(model, run_args, arguments, task))
    record.parameters[role], record.size_mib[role] = parameter_count(model), size_mib(model)
    if documents is not None:
        assert isinstance(task, EmbeddingTask)  # `load_teacher` refuses others
        queries = task.in_file_order(predict(model, arguments, task).predictions)
        record.metrics[role]["cross_spearman"] = task.cross_score(queries, documents)


def _record_scores(record: Record, role: str, scores: Scores) -> None:
    record.metrics[role], record.examples[role] = scores.metrics, scores.examples
    if scores.calibration is not None:
        record.calibration[role] = scores.calibration


def measure_teacher(
    record: Record, teacher: PreTrainedModel | None, run_args: RunArguments, arguments: ITRDArguments, task: Task
) -> Any:
    """The teacher's row: of the model, or of its outputs where the validation data holds them; else there is none.

    Returns:
        With ``keep_projection``, the teacher's embeddings of the validation texts, in their order; None where it has
        none.
    """
    prediction = task.teacher_prediction()
    if teacher is not None:
        measure(record, "teacher", teacher, run_args, arguments, task.for_teacher)
    elif prediction is not None:
        _record_scores(record, "teacher", scores_of(task, prediction, calibrates=True))
    if not run_args.keep_projection or "teacher" not in record.metrics:
        return None
    record.metric_names.insert(0, "cross_spearman")
    record.metrics["teacher"]["cross_spearman"] = record.metrics["teacher"]["spearman"]  # both texts are its own
    own_task = task.for_teacher
    assert isinstance(own_task, EmbeddingTask)  # `load_teacher` refuses others
    if prediction is not None and teacher is None:
        return own_task.in_file_order(prediction.predictions)
    return own_task.in_file_order(predict(teacher, arguments, own_task).predictions)


def finish(
    record: Record,
    student: PreTrainedModel,
    teacher_source: Any,
    run_args: RunArguments,
    training_args: ITRDArguments,
    task: Task,
) -> None:
    """Measure latency, then write the record and the student's card; on the first rank, once all models are there."""
    output = Path(str(training_args.output_dir))
    folder = output / "student"
    temperature = record.calibration.get("student", {}).get("temperature")
    vars(student.config).pop(TEMPERATURE, None)  # of an earlier run
    if temperature is not None:
        setattr(student.config, TEMPERATURE, temperature)
    store_temperature(folder, temperature)
    if training_args.losses:
        renew_files(folder, student, task)
    else:  # the student is the undistilled one, in the shared folder
        student.save_pretrained(folder)
        if processor := task.processor(student):
            save_processor(processor, folder)
    if run_args.latency:
        models = {"student": student}
        if teacher_source is not None:
            teacher = load_model(teacher_source, task.for_teacher, training_args.seed)[0]
            models = {"teacher": teacher, **models}
        record.latency_length = min(128, *map(window_limit, models.values())) if task.modality == "text" else 0
        record.latency_threads = torch.get_num_threads()
        record.latency_ms = _latency(models, task, record.latency_length)
    write_json(output / "record.json", dataclasses.asdict(record))
    repo = training_args.hub_model_id if training_args.push_to_hub else None
    sources = sources_of(run_args, bool(training_args.losses))
    write_card(folder, student, record, repo=repo, sources=sources, defaults=defaults_of(RunArguments))


def _latency(models: Mapping[str, PreTrainedModel], task: Task, length: int) -> dict[str, dict[str, dict[str, float]]]:
    """Times of a forward pass on the CPU in fp32, to where the models move: name -> size of the batch -> times."""
    on_cpu = {name: model.to("cpu", torch.float32).eval() for name, model in models.items()}
    times: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for count in BATCHES:
        if task.modality == "text":
            inputs = texts_for(models.values(), length, count)
        else:
            inputs = {"pixel_values": task.eval_dataset[0]["pixel_values"].expand(count, -1, -1, -1)}
        for name, each in forward_times({name: partial(model, **inputs) for name, model in on_cpu.items()}).items():
            times[name][str(count)] = each
    return times


def sources_of(run_args: RunArguments, distils: bool) -> dict[str, str]:
    """What a run's student comes from: its ``teacher`` if it distils, and the model that it ``started from``.

    A teacher that another run fine-tuned stands under the name of the model that it was before.

    Returns:
        Role -> folder, Hub id, or name of an architecture that was trained from scratch.
    """
    spec, student = run_args.teacher, run_args.student_spec
    if spec is None:
        teacher = OUTPUTS
    else:
        teacher = base_model_of(spec) if isinstance(spec, str) else str(spec.get("timm") or spec.get("model_type"))
    start = teacher if student.from_teacher else student.folder and base_model_of(student.folder)
    sources = {"teacher": teacher} if distils else {}
    if start is not None and start not in sources.values():
        sources["started from"] = start
    return sources
