"""Scores of a model on the evaluation data, what else a run measures of its models, and what it writes at its end."""

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import EvalPrediction, PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.output_folder import config_digest
from itrd_nlp.experiments.train import build_trainer
from itrd_nlp.experiments.trainings import private, store_temperature
from itrd_nlp.export.latency import forward_times, texts_for
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.models.new import second_logit
from itrd_nlp.models.onnx_model import OnnxModel
from itrd_nlp.tasks import calibration
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.metrics import SCORES_VERSION
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import scoring_values
from itrd_nlp.training.model_card import OUTPUTS, write_card
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import DamagedError
from itrd_nlp.utils.hashing import data_digest, digest, json_values, weights_digest
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit
from itrd_nlp.utils.ranks import from_first_rank
from itrd_nlp.utils.tokenizers import save_processor

logger = logging.getLogger(__name__)

BATCHES = (1, 32)  # texts or images at once, of which the latency is measured
# every prediction is scored, whatever the training's arguments say
ALL_PREDICTIONS: dict[str, Any] = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "include_for_metrics": [],
}


class Scores(NamedTuple):
    """What a model is worth on the evaluation data."""

    metrics: dict[str, float]  # e.g. {"exact_match": 81.5, "f1": 88.6}
    examples: dict[str, list[Any]]  # those of each example
    calibration: dict[str, Any] | None  # where asked for, see `itrd_nlp.tasks.calibration.calibrate`


def evaluate(model: PreTrainedModel, training_args: ITRDArguments, task: Task, calibrates: bool = False) -> Scores:
    """Score a model on the evaluation data, and where asked for rate its probabilities, which may take longer."""
    if task.one_score and model.config.num_labels == 2 and not isinstance(model, OnnxModel):
        model = second_logit(model, task.config_fields)  # its own loss would take classes for labels
    output = predict(model, training_args, task)
    return scores_of(task, EvalPrediction(output.predictions, output.label_ids), calibrates)


def in_fp32(training_args: ITRDArguments) -> ITRDArguments:
    """The arguments for scoring in fp32, or a model whose precision is its own, whatever trained it."""
    return private(training_args, bf16=False, fp16=False, bf16_full_eval=False, fp16_full_eval=False)


def scores_of(task: Task, prediction: EvalPrediction, calibrates: bool) -> Scores:
    """A task's scores of a prediction, metrics as plain numbers."""
    metrics, examples = task.score(prediction)
    plain = {key: value if isinstance(value, int) else float(value) for key, value in metrics.items()}
    return Scores(plain, examples, task.calibration(prediction) if calibrates else None)


def predict(model: PreTrainedModel, training_args: ITRDArguments, task: Task) -> Any:
    """Trainer's prediction of the evaluation data, in fp32 where scores are rank correlations.

    The model keeps its device and its precision.
    """
    precision, device = _precision(training_args, task), model.device
    if precision["bf16_full_eval"] or precision["fp16_full_eval"]:
        model = copy.deepcopy(model)  # Trainer casts it
    changes = {"attn_implementation": None, **precision, **ALL_PREDICTIONS}
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its output folder, even where it writes nothing
        arguments = private(training_args, **changes, output_dir=folder, report_to="none")
        trainer = build_trainer(model, None, arguments, task)
        trainer.compute_metrics = None  # `scores_of` computes them, with those of each example
        # neither shards a model that no optimizer comes with: each process scores a whole one
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
        try:
            model.to(trainer.args.device)
            return trainer.predict(task.eval_dataset)
        finally:
            model.to(device)


def evaluate_once(model: PreTrainedModel, run_args: RunArguments, training_args: ITRDArguments, task: Task) -> Scores:
    """:func:`evaluate`, unless an earlier run kept the scores in ``shared_dir``."""
    settings = json_values({**scoring_values(training_args), **_precision(training_args, task)})
    versions = [SCORES_VERSION, calibration.VERSION]
    of_model = [weights_digest(model), config_digest(model)]
    inputs = [*of_model, data_digest(task.eval_dataset), task.scoring(), settings, *versions]
    path = Path(run_args.shared_dir) / "evaluated" / f"{digest(inputs)}.json"

    def read() -> dict[str, Any] | None:
        try:
            return read_json(path) if path.is_file() else None
        except DamagedError as error:
            logger.warning(f"[evaluated] {error}: made again")
            return None

    scores = from_first_rank(read, training_args)
    if scores is None:
        scores = evaluate(model, training_args, task, calibrates=True)._asdict()
        if training_args.process_index == 0:
            make_folder(path.parent)
            write_json(path, scores)
    return Scores(**scores)


def _precision(training_args: ITRDArguments, task: Task) -> dict[str, bool]:
    """The precision of an evaluation: fp32 for metrics of ranks, as half precision makes unequal outputs equal."""
    half = not {"spearman", "ndcg@10"} & {*task.metric_names}
    names = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
    return {name: bool(getattr(training_args, name)) and half for name in names}


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
    if "student" in record.calibration:
        setattr(student.config, TEMPERATURE, record.calibration["student"]["temperature"])
        store_temperature(folder, record.calibration["student"]["temperature"])
    if not training_args.losses:  # the student is the undistilled one, in the shared folder
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

    Returns:
        Role -> folder, Hub id, or name of an architecture that was trained from scratch.
    """
    spec, student = run_args.teacher, run_args.student
    if spec is None:
        teacher = OUTPUTS
    else:
        teacher = spec if isinstance(spec, str) else str(spec.get("timm") or spec.get("model_type"))
    start = student if isinstance(student, str) else student.get("from", "teacher")
    if start == "teacher":
        is_new = not isinstance(student, str) and {"model_type", "timm"} & {*student}
        start = None if is_new else teacher
    sources = {"teacher": teacher} if distils else {}
    if start is not None and start not in sources.values():
        sources["started from"] = start
    return sources
