"""Scores of a model on the evaluation data, measured once for all runs that share it."""

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from transformers import EvalPrediction, PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.output_folder import config_digest
from itrd_nlp.experiments.train import build_trainer
from itrd_nlp.experiments.trainings import without_publishing
from itrd_nlp.models.new import one_score
from itrd_nlp.models.onnx_model import OnnxModel
from itrd_nlp.tasks import calibration
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.metrics import SCORES_VERSION, TASK_VERSIONS
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import scoring_values
from itrd_nlp.utils.errors import DamagedError
from itrd_nlp.utils.hashing import data_digest, digest, json_values, weights_digest
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.ranks import from_first_rank

logger = logging.getLogger(__name__)

PRECISIONS = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
# every prediction is scored, whatever the training's arguments say
ALL_PREDICTIONS: dict[str, Any] = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "include_for_metrics": [],
    "documents_per_query": None,  # is about training data
}


class Scores(NamedTuple):
    """What a model is worth on the evaluation data."""

    metrics: dict[str, float]  # e.g. {"exact_match": 81.5, "f1": 88.6}
    examples: dict[str, list[Any]]  # those of each example
    calibration: dict[str, Any] | None  # where asked for, see `itrd_nlp.tasks.calibration.calibrate`


def evaluate(model: PreTrainedModel, training_args: ITRDArguments, task: Task, calibrates: bool = False) -> Scores:
    """Score a model on the evaluation data; with ``calibrates``, also measure its calibration."""
    if task.one_score and model.config.num_labels == 2 and not isinstance(model, OnnxModel):
        model = one_score(model, task.config_fields)  # its own loss would take classes for labels
    output = predict(model, training_args, task)
    return scores_of(task, EvalPrediction(output.predictions, output.label_ids), calibrates)


def evaluate_in_fp32(
    model: PreTrainedModel, training_args: ITRDArguments, task: Task, calibrates: bool = False
) -> Scores:
    """:func:`evaluate` in fp32, or in a precision that is the model's own, whatever trained it."""
    return evaluate(model, in_fp32(training_args), task, calibrates)


def in_fp32(training_args: ITRDArguments) -> ITRDArguments:
    """A copy of the arguments that computes in fp32 and publishes nothing."""
    return without_publishing(training_args, **dict.fromkeys(PRECISIONS, False))


def scoring_versions(task: str | None) -> list[int]:
    """Versions of what computes a task's scores: those of other versions, kept on disk, are not its own."""
    of_task = [version for name, version in TASK_VERSIONS.items() if name == task]
    return [SCORES_VERSION, calibration.VERSION, *of_task]


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
        arguments = without_publishing(training_args, **changes, output_dir=folder, report_to="none")
        trainer = build_trainer(model, None, arguments, task, trains=False)
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
    of_model = [weights_digest(model), config_digest(model)]
    inputs = [*of_model, data_digest(task.eval_dataset), task.scoring(), settings, *scoring_versions(run_args.task)]
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
    return {name: bool(getattr(training_args, name)) and half for name in PRECISIONS}
