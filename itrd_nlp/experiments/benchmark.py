"""What models cost where they run: PyTorch in fp32 and bf16, ONNX in fp32 and int8, in one table."""

import copy
import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from itrd_nlp.experiments.scoring import evaluate_in_fp32
from itrd_nlp.export.comparison import difference, refuse_difference, sample_batches
from itrd_nlp.export.export import load_for_export
from itrd_nlp.export.latency import forward_times, texts_for
from itrd_nlp.export.onnx import need_exporter, write_model
from itrd_nlp.export.quantization import quantise
from itrd_nlp.inference.saved_models import load_trained
from itrd_nlp.models.classes import classes_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import FILES, OnnxModel, is_exported
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.token_classification import TaggingTask
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.environment import installed, provenance
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.io import named_path
from itrd_nlp.utils.modeling import parameter_count, reads_images, size_mib, window_limit
from itrd_nlp.utils.tokenizers import tokenizers_differ, with_blanks

logger = logging.getLogger(__name__)

SETTLE = 0.03  # seconds: threads of PyTorch spin for a while after each of its calls
LENGTHS = (32, 128, 384)  # tokens; only those that all models take
Form = tuple[dict[str, Any], PreTrainedModel]  # a row of the record, and the model that it is measured of


def benchmark(
    models: Mapping[str, str],
    task: Task | None = None,
    training_args: ITRDArguments | None = None,
    *,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 32),
    threads: int | None = None,
    repeats: int = 10,
    device: str = "cpu",
) -> dict[str, Any]:
    """Size, latency and throughput of models in each form, all taking turns; scores where there are data.

    Args:
        models: name -> folder or Hub id, which is exported to a temporary folder; or what ``itrd export`` wrote,
            measured as it is.
        task: its validation data score every row.
        training_args: how to evaluate, with a task.
        lengths: tokens per text; None: those of ``LENGTHS`` that every model takes.
        batches: texts or images per forward.
        threads: of a forward; None: torch's number.
        repeats: timed forwards of each, after two that are not timed; fewer where a batch takes longer than a minute.
        device: "cpu", or torch's name of an accelerator, such as "cuda": there PyTorch alone is measured.

    Returns:
        A record: ``rows``, each with ``ms`` by length (0 for images) and batch.

    Raises:
        UserError: no such models or device, or lengths, batches, threads or repeats that are out of range.
    """
    counts = {"lengths": lengths or (), "batches": batches, "threads": () if threads is None else (threads,)}
    for name, values in counts.items():
        if any(value < 1 for value in values):
            raise UserError(f"--{name} {' '.join(map(str, values))}: expected 1 or more")
    if repeats < 2:
        raise UserError(f"--repeats {repeats}: expected 2 or more, to measure a spread")
    torch_device = _device(device)
    forms: list[Form] = []
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        for name, source in models.items():
            forms += _forms(name, source, Path(folder) / str(len(forms)), torch_device)
        loaded = {str(i): model for i, (_, model) in enumerate(forms)}
        lengths = _lengths([*loaded.values()], lengths)
        if task is not None and training_args is not None:
            _check_alike(models, forms, task)
            for row, model in forms:
                row["metrics"] = evaluate_in_fp32(model, training_args, task).metrics
        for length, batch in itertools.product(lengths, batches):
            for index, times in forward_ms(loaded, length, batch, repeats).items():
                forms[int(index)][0]["ms"].setdefault(str(length), {})[str(batch)] = times
        record: dict[str, Any] = {"lengths": lengths, "batches": list(batches), **provenance(torch_device)}
    record["rows"] = [row for row, _ in forms]
    record["metric_names"] = list(task.metric_names) if task else []
    record["examples"] = task.eval_examples if task else 0
    record["versions"]["onnxruntime"] = installed("onnxruntime") or "not installed"
    return record


def forward_ms(
    models: Mapping[str, PreTrainedModel], length: int, batch: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Time a forward pass of each model on its device, in turns; stops after a minute.

    Args:
        models: name -> model; an ``itrd_nlp.models.onnx_model.OnnxModel`` is one too.
        length: tokens of a text, without padding; 0 for images.
        batch: texts or images at once.
        repeats: timed forwards of each, after two that are not timed.

    Returns:
        name -> ``median`` and ``spread`` (half the interquartile range) in ms, and ``n``.
    """
    inputs = _inputs([*models.values()], length, batch)
    calls = {}
    for name, model in models.items():
        cast = {key: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for key, x in inputs.items()}
        calls[name] = partial(model, **cast)
    runtimes = {isinstance(model, OnnxModel) for model in models.values()}
    return forward_times(calls, repeats, budget=60.0, pause=SETTLE if len(runtimes) > 1 else 0.0)


def by_short_name(sources: Sequence[str]) -> dict[str, str]:
    """Short names of models: the last parts of their paths, as many as tell them apart.

    Example:
        >>> by_short_name(["runs/t6/student", "runs/t3/student"])
        {'t6/student': 'runs/t6/student', 't3/student': 'runs/t3/student'}
    """
    unique = list(dict.fromkeys(str(named_path(Path(source))) for source in sources))
    if len(unique) < len(sources):
        raise UserError(f"{' '.join(sources)}: one is named twice; expected each once")
    for depth in range(1, 1 + max(len(Path(source).parts) for source in unique)):
        names = ["/".join(Path(source).parts[-depth:]) for source in unique]
        if len({*names}) == len(names):
            break
    return dict(zip(names, unique, strict=True))


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch, and onnxruntime for models that are loaded meanwhile, use so many threads; None: torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> torch.device:
    """The device of that name, which has to be there."""
    try:
        device = torch.empty(0, device=name).device
        if device.index is not None:
            torch.accelerator.set_device_index(device.index)  # whose kernels a timed call waits for
        return device
    except (AssertionError, RuntimeError) as error:  # torch raises the first where it was built without CUDA
        raise UserError(f"--device {name}: not usable here ({one_line(error)}); expected cpu, or cuda") from None


def _forms(name: str, source: str, folder: Path, device: torch.device) -> list[Form]:
    """Each form of a model, with its row; ``folder`` takes its export."""
    on_cpu = device.type == "cpu"
    if is_exported(source):
        if not on_cpu:
            raise UserError(
                f"--device {device} with the exported {source}: ONNX runs on the CPU; name the model itself"
            )
        paths = [Path(source)] if source.endswith(".onnx") else [Path(source) / file for file in FILES.values()]
        forms = {Path(file).name: form for form, file in FILES.items()}
        return [_onnx(name, forms.get(path.name, path.stem), path, None) for path in paths if path.is_file()]
    model = load_trained(source).to(device)
    count, half = parameter_count(model), _in_bf16(model)
    rows = [(_row(name, f"PyTorch {form}", count, size_mib(m)), m) for form, m in (("fp32", model), ("bf16", half))]
    if not on_cpu:
        return rows
    try:
        need_exporter()
        inputs = sample_batches(model, source, None)
        exported = load_for_export(source)
        write_model(exported, inputs[-1], folder)
        refuse_difference(difference(exported, folder / FILES["fp32"], inputs), folder, source)
        quantise(folder)
    except UserError as error:
        logger.warning(f"[benchmark] {name} in PyTorch alone: {error}")
        return rows
    return rows + [_onnx(name, form, folder / file, count) for form, file in FILES.items()]


def _in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """A copy as transformers loads it with ``dtype=torch.bfloat16``: what no checkpoint holds, such as the frequencies
    of rotary positions, stays in fp32."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    for own, other in zip(model.modules(), half.modules(), strict=True):
        for name in own._non_persistent_buffers_set:
            setattr(other, name, copy.deepcopy(getattr(own, name)))
    return half


def _onnx(name: str, form: str, path: Path, parameters: int | None) -> Form:
    return _row(name, f"ONNX {form}", parameters, path.stat().st_size / 2**20), OnnxModel(path)


def _row(name: str, form: str, parameters: int | None, mib: float) -> dict[str, Any]:
    """A row of the record; ``parameters`` are None where only the exported file is there."""
    return {"name": name, "form": form, "parameters": parameters, "mib": mib, "metrics": {}, "ms": {}}


def _check_alike(models: Mapping[str, str], forms: Sequence[Form], task: Task) -> None:
    """Raise :class:`UserError` where a model has other classes than the first, or a tokenizer other than the task's."""
    first_row, first_model = forms[0]
    differs_in = None
    for row, model in forms:
        if not task.one_score and _classes(model) != _classes(first_model):
            differs_in = "their classes"
        elif task.tokenizer is not None:
            own = load_tokenizer(models[row["name"]])
            differs_in = tokenizers_differ(task.tokenizer, with_blanks(own) if isinstance(task, TaggingTask) else own)
        if differs_in is not None:
            raise UserError(
                f"{first_row['name']} and {row['name']} differ in {differs_in}: expected the same to score them on the "
                "same data; leave the data out, or measure each by itself"
            )


def _classes(model: PreTrainedModel) -> list[str]:
    """The classes of a model; a single output has no name that says anything."""
    names = classes_of(model.config)
    return names if len(names) > 1 else [""]


def _lengths(models: Sequence[PreTrainedModel], lengths: Sequence[int] | None) -> list[int]:
    """The lengths to measure: those of the user, or those of ``LENGTHS`` that every model takes; [0] for images."""
    images = [reads_images(model) for model in models]
    if any(images) != all(images):
        raise UserError("texts and images in one table: expected models of one kind")
    if all(images):
        if lengths:
            raise UserError(f"--lengths {lengths[0]} with images: it is for texts; leave it out")
        return [0]
    longest = min(map(window_limit, models))
    if lengths and max(lengths) > longest:
        raise UserError(f"--lengths {max(lengths)}: the models take at most {longest} tokens; lower it")
    return list(lengths or [length for length in LENGTHS if length <= longest] or [longest])


def _inputs(models: Sequence[PreTrainedModel], length: int, batch: int) -> dict[str, Tensor]:
    """A batch whose forward is timed, the same for all models."""
    if length:
        return texts_for(models, length, batch)
    shapes = {_image_shape(model) for model in models}
    if len(shapes) > 1:
        raise UserError(f"the models take images of the shapes {sorted(shapes)}: expected one for all")
    return {"pixel_values": torch.randn(batch, *shapes.pop(), generator=torch.Generator().manual_seed(0))}


def _image_shape(model: PreTrainedModel) -> tuple[int, ...]:
    """Channels, height and width of the images that a model takes."""
    if isinstance(model, OnnxModel):
        return tuple(model.session.get_inputs()[0].shape[1:])
    from itrd_nlp.vision.models import preprocessing_of

    return 3, *preprocessing_of(model.name_or_path).size
