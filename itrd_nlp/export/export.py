"""Export of a trained model into a folder that onnxruntime and tokenizers run alone, checked against PyTorch."""

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from itrd_nlp.distillation.pooling import sentence_pooling
from itrd_nlp.export.comparison import difference, refuse_difference, sample_batches
from itrd_nlp.export.folder import text_settings, write_image_files, write_script, write_tokenizer
from itrd_nlp.export.onnx import need_exporter, write_model
from itrd_nlp.export.quantization import quantise, quantise_within
from itrd_nlp.inference.saved_models import load_trained
from itrd_nlp.inference.texts import check_reranker
from itrd_nlp.models.classes import TASK_OF_HEAD, TEMPERATURE, classes_of, distinct, task_of, temperature_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import FILES, RECORD, OnnxModel
from itrd_nlp.models.projection import projected_width
from itrd_nlp.models.sentence_pooling import normalises, read_pooling, sentence_files, write_files
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.text_classification import MultilabelTask
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.io import make_folder, write_json
from itrd_nlp.utils.modeling import INDEPENDENT, parameter_count, reads_images, size_mib

logger = logging.getLogger(__name__)


def export(
    source: str,
    output: str | Path,
    task: Task | None = None,
    score: Callable[[PreTrainedModel], Mapping[str, float]] | None = None,
    int8: bool = True,
    max_drop: float | None = None,
    enough: float | None = None,
    calibration: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model as ONNX, in fp32 and with dynamic int8 quantisation, and compare both with PyTorch.

    The folder has the layout of transformers.js and optimum: ``onnx/model.onnx`` and ``onnx/model_quantized.onnx``,
    config and tokenizer at its root.

    Args:
        source: folder or Hub id of a trained text encoder, with a head of a known task or without, or of an image
            classifier.
        output: folder to make; one that an earlier export wrote is replaced.
        task: its validation data check and score the exported models; None: built-in texts, or noise, check them.
        score: metrics of a model on those data, in fp32.
        int8: False leaves the int8 model out.
        max_drop: points of the task's main metric, the last of ``metric_names``, that int8 may lose against fp32 on
            the validation data; see :func:`itrd_nlp.export.quantization.quantise_within`. None: any.
        enough: a score from which on int8 may lose more than ``max_drop``.
        calibration: of :func:`itrd_nlp.tasks.calibration.calibrate`; its temperature goes into the exported config.
            None: the model keeps the one in its config, if any.
        text_options: how texts are read where there is no task: any of ``itrd_nlp.models.onnx_model.SETTINGS``, and
            ``ranks``, whether a head that does not say so scores documents for a query.

    Returns:
        The content of ``export.json`` in the folder: ``rows`` has ``ONNX int8`` where there is such a model;
        ``quantisation`` says what ``max_drop`` led to.

    Raises:
        UserError: no trained model, one that cannot be exported, a folder of something else, outputs that differ, or a
            ``max_drop`` below 0, without validation data or without int8.
    """
    need_exporter()
    output = Path(output)
    if max_drop is not None:
        _check_max_drop(max_drop, task is not None and score is not None, int8)
    _check_output(output)
    model = load_for_export(source)
    kind = _known_task(model, source)
    if kind == "embedding":
        read_pooling(source)  # refuses embeddings that are made otherwise
    if isinstance(task, MultilabelTask) and model.config.problem_type is None:
        model.config.problem_type = INDEPENDENT  # by which others, and run.py, take probabilities
    if calibration is not None:
        setattr(model.config, TEMPERATURE, calibration["temperature"])
    settings = _settings(model, source, kind, task, text_options or {})
    batches = sample_batches(model, source, task)
    make_folder(output.parent)
    with writing(output), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        folder = Path(temporary) / "exported"
        write_model(model, batches[-1], folder)
        rows: dict[str, Any] = {"PyTorch fp32": {"mib": size_mib(model)}}
        rows["ONNX fp32"] = difference(model, folder / FILES["fp32"], batches)
        refuse_difference(rows["ONNX fp32"], folder, source)
        if score is not None:
            rows["PyTorch fp32"]["metrics"] = score(model)
            rows["ONNX fp32"]["metrics"] = score(OnnxModel(folder))
        record = _record(model, source, task, score is not None) | {"rows": rows, "settings": settings}
        record |= {"quantisation": None, "calibration": None if calibration is None else dict(calibration)}
        if int8:
            row, record["quantisation"] = _int8(folder, model, batches, record, score, max_drop, enough)
            rows |= {} if row is None else {"ONNX int8": row}
        record |= _write_inputs(folder, model, source, kind, settings, "token_type_ids" in batches[-1])
        write_script(folder, record, kind)
        write_json(folder / RECORD, record)
        if output.exists():
            # a kill before this leaves the old export, one between the two renames leaves none
            output.rename(folder.with_name("replaced"))
        folder.rename(output)
    return record


def _check_output(output: Path) -> None:
    if output.suffix == ".onnx":
        raise UserError(f"--output {output}: expected the name of a folder, which does not end in .onnx")
    if output.exists() and not (output / RECORD).is_file():
        raise UserError(f"--output {output}: there is something else; expected a new folder, or one of `itrd export`")


def _write_inputs(
    folder: Path, model: PreTrainedModel, source: str, kind: str, settings: Mapping[str, Any], takes_types: bool
) -> dict[str, Any]:
    """Write what prepares a model's inputs, images or texts; return what ``export.json`` says of images."""
    if kind == "images":
        return write_image_files(folder, model, source)
    write_tokenizer(folder, source, kind, settings["max_length"], takes_types)
    if kind == "embedding":  # for the ONNX backend of sentence-transformers
        width = projected_width(model) or model.config.hidden_size
        pooling = sentence_pooling(model.config).spec
        write_files(sentence_files(pooling, width, settings["max_length"], normalises(source)), folder)
    return {}


def load_for_export(source: str) -> PreTrainedModel:
    """A trained model as it is exported: what a binary network computes with is stored as its weights."""
    model = load_trained(source)
    for module in model.modules():
        if hasattr(module, "fix_weights"):  # of a binary network
            module.fix_weights()
    return model


def _settings(
    model: PreTrainedModel, source: str, kind: str, task: Task | None, text_options: Mapping[str, Any]
) -> dict[str, Any]:
    """How inputs are read, see :func:`text_settings`; :class:`UserError` for options that do not fit the model."""
    if kind == "images":
        if text_options:
            raise UserError(f"--{min(text_options)}: it is for texts, and {source} reads images; leave it out")
        return {}
    settings = text_settings(model, load_tokenizer(source), task, text_options)
    _check_ranks(model, source, settings.get("ranks", text_options.get("ranks", False)), kind, task)
    return settings


def _check_ranks(model: PreTrainedModel, source: str, ranks: bool, kind: str, task: Task | None) -> None:
    """Refuse a head that cannot rank where it should, and say what may be wrong where one does not say what it does."""
    if ranks:
        check_reranker(model.config, kind, source)
    elif task is None and kind == "regression" and model.config.problem_type is None:
        logger.warning(
            f"[export] {source} has one output and does not say what it scores: exported as a regression; for a "
            "reranker, which reads up to 512 tokens and never cuts the query, add --task reranking"
        )


def _known_task(model: PreTrainedModel, source: str) -> str:
    """The task of a model; :class:`UserError` for a head of no known one, and an encoder of images."""
    task = task_of(model.config)
    if task is None or (task != "images" and reads_images(model)):
        tasks = ", ".join(dict.fromkeys(TASK_OF_HEAD.values()))
        raise UserError(f"{source} is a {type(model).__name__}: expected a model for {tasks}")
    return task


def _check_max_drop(max_drop: float, has_data: bool, int8: bool) -> None:
    if not 0 <= max_drop < math.inf:
        raise UserError(f"--max_drop {max_drop:g}: expected 0 or more points of the task's main metric")
    if not int8:
        raise UserError(f"--max_drop {max_drop:g} with --no_int8: there is no int8 model to limit; leave one out")
    if not has_data:
        raise UserError(
            f"--max_drop {max_drop:g} without validation data: expected data to measure the drop on; add "
            "--validation_file FILE or --dataset HUB_ID"
        )


def _int8(
    folder: Path,
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    record: Mapping[str, Any],
    score: Callable[[PreTrainedModel], Mapping[str, float]] | None,
    max_drop: float | None,
    enough: float | None,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Write the int8 file, unless it loses more than ``max_drop``; returns its row, and what ``max_drop`` led to."""
    file = folder / FILES["int8"]
    if score is None or max_drop is None:
        quantise(folder)
        row = difference(model, file, batches)
        return row if score is None else {**row, "metrics": score(OnnxModel(file))}, None
    expected, metric = record["rows"]["ONNX fp32"]["metrics"], record["metric_names"][-1]
    result = quantise_within(folder, batches[-1], lambda: score(OnnxModel(file)), expected, metric, max_drop, enough)
    if result["kept"] != "int8":
        return None, result
    return {**difference(model, file, batches), "metrics": result["tries"][-1]["metrics"]}, result


def _record(model: PreTrainedModel, source: str, task: Task | None, scored: bool) -> dict[str, Any]:
    """What ``export.json`` says of the model, the data and the machine."""
    labels = classes_of(model.config)
    record = {
        "source": Path(source).name if Path(source).is_dir() else source,  # without paths of this machine
        "architecture": type(model).__name__,
        "parameters": parameter_count(model),
        "labels": labels if task_of(model.config) == "tagging" else distinct(labels),  # keys of results
        "metric_names": list(task.metric_names) if task and scored else [],
        "examples": task.eval_examples if task else 0,
        "temperature": temperature_of(model.config),
        **provenance(torch.device("cpu")),
    }
    record["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    return record
