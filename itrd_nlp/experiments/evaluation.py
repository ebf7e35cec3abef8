"""Saved models, exported or not, on validation data: what ``itrd evaluate``, ``export`` and ``benchmark`` score."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import check_scores, load_model
from itrd_nlp.experiments.parsing import parse, texts_of
from itrd_nlp.experiments.scoring import Scores, evaluate, evaluate_in_fp32
from itrd_nlp.experiments.tasks import announced_task
from itrd_nlp.inference.saved_models import load_saved, saved_task
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import SETTINGS, OnnxModel, exported_settings, is_exported
from itrd_nlp.models.projection import with_projection
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.tokenising import RERANKER_LENGTH
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_positions
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)


def has_data(run_args: RunArguments) -> bool:
    """Whether there is something to evaluate on."""
    return bool(run_args.dataset or run_args.validation_file or run_args.task == "toy")


def with_task(model: str, words: Sequence[str]) -> list[str]:
    """The words of a command line, completed by what a saved model's files say: its task, and how it was exported, or
    the length of a reranker's texts."""
    texts = texts_of(words)
    if "--teacher" in texts:
        raise UserError("--teacher beside a saved model: it is the model itself that is scored; leave it out")
    options: dict[str, Any] = {"task": saved_task(model) or ("images" if _is_timms(model) else None)}
    if is_exported(model):
        options |= exported_settings(model, [key.removeprefix("--") for key in texts])
    elif texts.get("--task", options["task"]) == "reranking":
        tokenizer = load_tokenizer(texts.get("--tokenizer") or model)  # was saved with the length of the training
        options["max_length"] = min(RERANKER_LENGTH, tokenizer.model_max_length)
    missing = {f"--{name}": str(value) for name, value in options.items() if value is not None}
    added = [word for name, value in missing.items() if name not in texts for word in (name, value)]
    return [*words, *added]


def _is_timms(name: str) -> bool:
    """Whether timm has a model of that name."""
    try:
        import timm

        import itrd_nlp.vision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return timm.is_model(name)


def scored_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """The task of the arguments; raises :class:`UserError` where it has no validation data."""
    task = announced_task(run_args, training_args)
    if task.eval_dataset is None:
        raise UserError("no validation data: expected --validation_file FILE, or a --dataset with that split")
    return task


def evaluation_task(model: str, words: Sequence[str]) -> tuple[Task | None, ITRDArguments]:
    """The task of a command line for a model, and how to evaluate; without words about data there is no task."""
    if "--tokenizer" in texts_of(words):
        raise UserError(
            f"--tokenizer: {model} is measured with its own; leave it out, or save the other one in its folder"
        )
    run_args, training_args = parse(None, ["--teacher", model, *with_task(model, words)])
    if has_data(run_args):
        return scored_task(run_args, training_args), training_args
    if words:
        raise UserError(
            f"{words[0]}: it is about evaluating; add --validation_file FILE or --dataset HUB_ID, or leave it out"
        )
    return None, training_args


def text_options_of(model: str, words: Sequence[str]) -> dict[str, Any]:
    """How an exported model is to read texts, by a command line that names no data: see ``export``.

    Empty where there are data, whose task says it, or words that need some.
    """
    texts = texts_of(words)
    ranks = texts.get("--task") == "reranking"
    need_no_data = {*(f"--{name}" for name in SETTINGS), *(["--task"] if ranks else [])}
    if not texts.keys() <= need_no_data:
        return {}
    others = texts.keys() - {"--task", "--max_length"}
    if others and saved_task(model) != "squad":
        raise UserError(f"{min(others)}: it is for question answering; leave it out")
    run_args, _ = parse(None, ["--teacher", model, *with_task(model, words)])
    options = {name: getattr(run_args, name) for name in SETTINGS if f"--{name}" in texts}
    return {**options, "ranks": True} if ranks else options


def scorer(task: Task, training_args: ITRDArguments) -> Callable[[PreTrainedModel], dict[str, float]]:
    """A function that gives the metrics of a model on a task's validation data, computed in fp32."""
    return lambda model: evaluate_in_fp32(model, training_args, task).metrics


def check_probabilities(task: Task, name: str | None) -> None:
    """Raise :class:`UserError` for a task, by its name, whose scores are not probabilities."""
    if not task.has_probabilities:
        raise UserError(
            f"--calibrate with task {name}: expected a classifier of texts or images, or a reranker that "
            "learned from labels of 0 and 1 and is scored by such; leave it out"
        )


def calibration_of(source: str, task: Task, training_args: ITRDArguments) -> dict[str, Any]:
    """:func:`itrd_nlp.tasks.calibration.calibrate` of a saved model on a task's validation data, in fp32.

    Raises:
        UserError: a task without probabilities, fewer than two examples, or a reranker with two classes.
    """
    check_probabilities(task, saved_task(source))
    model = load_saved(source)
    if task.one_score and model.config.num_labels == 2:
        raise UserError(
            f"--calibrate: {source} has two classes, which reranking reads as one score; expected one output, or "
            "--task classification"
        )
    return _calibration(evaluate_in_fp32(model, training_args, task, calibrates=True))


def _calibration(scores: Scores) -> dict[str, Any]:
    if scores.calibration is None:
        raise UserError("--calibrate: expected two validation examples or more, or queries of a reranker")
    temperature, groups = scores.calibration["temperature"], scores.calibration["groups"]
    logger.info(
        f"[calibrate] temperature {temperature:.4f}, fitted on all {groups:,} examples or queries; what is measured "
        "after it has, for each half of them, the temperature of the other half"
    )
    return scores.calibration


def evaluate_saved(run_args: RunArguments, training_args: ITRDArguments, calibrated: bool = False) -> dict[str, Any]:
    """Score a saved model, the arguments' teacher, on their validation data.

    Args:
        calibrated: add ``calibration``, see :func:`itrd_nlp.tasks.calibration.calibrate`.
    """
    source = run_args.teacher
    if not has_data(run_args):
        raise UserError("no data: expected --validation_file FILE or --dataset HUB_ID")
    task = scored_task(run_args, training_args)
    if calibrated:
        check_probabilities(task, run_args.task)
    if is_exported(source):
        model, complete = OnnxModel(source), True
    else:
        check_scores(source, task)
        model, complete = load_model(source, task, training_args.seed)
        if isinstance(source, str):
            model = with_projection(model, source)
    if not complete:
        raise UserError(
            f"{source} has no head for task {run_args.task}: expected a fine-tuned model; distil or fine-tune it"
        )
    check_positions(model, task.max_length, str(source))
    scores = evaluate(model, training_args, task, calibrated)
    return {**scores.metrics, "calibration": _calibration(scores)} if calibrated else scores.metrics
