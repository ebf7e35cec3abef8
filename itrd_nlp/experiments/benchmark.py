"""What models cost where they run: PyTorch in fp32 and bf16, ONNX in fp32 and int8, in one table."""

import copy
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from itrd_nlp.experiments.scoring import evaluate
from itrd_nlp.export.export import check_batches, difference, refuse_difference
from itrd_nlp.export.latency import forward_times, texts
from itrd_nlp.export.onnx import need_exporter, write_model
from itrd_nlp.inference.saved_models import load_trained
from itrd_nlp.models.onnx_model import FILES, OnnxModel, is_exported
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.record import LATENCY
from itrd_nlp.utils.environment import installed, provenance
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit
from itrd_nlp.utils.tables import SHORT, Table

logger = logging.getLogger(__name__)

LENGTHS = (32, 128, 384)  # tokens, as far as all models take them


class Row(NamedTuple):
    """One model in one form."""

    name: str
    form: str  # "PyTorch fp32", "ONNX int8", ...
    model: PreTrainedModel
    parameters: int | None  # None where only the exported file is there
    mib: float  # on disk


def benchmark(
    models: Mapping[str, str],
    task: Task | None = None,
    training_args: ITRDArguments | None = None,
    *,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 32),
    threads: int | None = None,
    repeats: int = 10,
) -> dict[str, Any]:
    """Size, latency and throughput of models in each form on the CPU, all taking turns; scores where there are data.

    Args:
        models: name -> folder or Hub id, which is exported aside; or what ``itrd export`` wrote, measured as it is.
        task: its validation data score every row.
        training_args: how to evaluate, with a task.
        lengths: tokens of the texts; None: those of ``LENGTHS`` that every model takes.
        batches: how many texts or images a forward.
        threads: of a forward; None: torch's number.
        repeats: timed forwards of each, after two that are not timed; fewer where a batch takes longer than a minute.

    Returns:
        A record: ``rows``, each with ``ms`` by length (0 for images) and batch.

    Raises:
        UserError: no such models, or lengths, batches, threads or repeats that cannot be.
    """
    for name, values in (
        ("lengths", lengths or ()),
        ("batches", batches),
        ("threads", [1 if threads is None else threads]),
    ):
        if any(value < 1 for value in values):
            raise UserError(f"--{name} {' '.join(map(str, values))}: expected 1 or more")
    if repeats < 2:
        raise UserError(f"--repeats {repeats}: expected 2 or more, to tell a spread")
    with tempfile.TemporaryDirectory() as aside, _threads(threads):
        rows: list[Row] = []
        for name, source in models.items():
            rows += _rows(name, source, Path(aside) / str(len(rows)))
        lengths = _lengths([row.model for row in rows], lengths)
        if task is not None:
            _check_alike(rows)
        scores = [_scores(row.model, task, training_args) for row in rows]
        times = _times([row.model for row in rows], lengths, batches, repeats)
        record: dict[str, Any] = {"lengths": lengths, "batches": list(batches), **provenance(torch.device("cpu"))}
    record["rows"] = [
        {**{field: getattr(row, field) for field in ("name", "form", "parameters", "mib")}, "metrics": score, "ms": ms}
        for row, score, ms in zip(rows, scores, times, strict=True)
    ]
    record["metric_names"] = list(task.metric_names) if task else []
    record["examples"] = len(task.eval_dataset) if task else 0
    record["versions"]["onnxruntime"] = installed("onnxruntime") or "not installed"
    return record


def _times(
    models: Sequence[PreTrainedModel], lengths: Sequence[int], batches: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """For each model: length -> batch -> what :func:`itrd_nlp.export.latency.forward_times` says of a forward."""
    times: list[dict[str, Any]] = [{str(length): {} for length in lengths} for _ in models]
    for length in lengths:
        for batch in batches:
            given = _example(models, length, batch)
            calls = {str(place): partial(model, **_cast(given, model)) for place, model in enumerate(models)}
            for place, summary in forward_times(calls, repeats, budget=60.0).items():
                times[int(place)][str(length)][str(batch)] = summary
    return times


def named(sources: Sequence[str]) -> dict[str, str]:
    """Short names of models: the last parts of their paths, as many as tell them apart.

    Example:
        >>> named(["runs/t6/student", "runs/t3/student"])
        {'t6/student': 'runs/t6/student', 't3/student': 'runs/t3/student'}
    """
    unique = list(dict.fromkeys(source.rstrip("/") for source in sources))
    if len(unique) < len(sources):
        raise UserError(f"{' '.join(sources)}: one is named twice; expected each once")
    for depth in range(1, 1 + max(len(Path(source).parts) for source in unique)):
        names = ["/".join(Path(source).parts[-depth:]) for source in unique]
        if len({*names}) == len(names):
            break
    return dict(zip(names, unique, strict=True))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's number of threads, changed for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(name: str, source: str, aside: Path) -> list[Row]:
    if is_exported(source):
        paths = [Path(source)] if source.endswith(".onnx") else [Path(source) / file for file in FILES.values()]
        forms = {file: form for form, file in FILES.items()}
        return [_onnx(name, forms.get(path.name, path.stem), path, None) for path in paths if path.is_file()]
    model = load_trained(source)
    count = parameter_count(model)
    half = copy.deepcopy(model).to(torch.bfloat16)
    rows = [Row(name, f"PyTorch {kind}", m, count, size_mib(m)) for kind, m in (("fp32", model), ("bf16", half))]
    try:
        need_exporter()
        inputs = check_batches(model, source, None)
        write_model(model, inputs[-1], aside)
        refuse_difference(difference(model, aside / FILES["fp32"], inputs), aside, source)
    except UserError as error:
        logger.warning(f"[benchmark] {name} in PyTorch alone: {error}")
        return rows
    return rows + [_onnx(name, form, aside / file, count) for form, file in FILES.items()]


def _onnx(name: str, form: str, path: Path, parameters: int | None) -> Row:
    return Row(name, f"ONNX {form}", OnnxModel(path), parameters, path.stat().st_size / 2**20)


def _check_alike(rows: Sequence[Row]) -> None:
    """Raise :class:`UserError` where the words or the classes of one model are not those of another."""
    first = rows[0]
    for row in rows:
        for what in ("vocab_size", "id2label"):
            mine, theirs = [getattr(x.model.config, what, None) for x in (first, row)]
            if mine != theirs:
                raise UserError(
                    f"{first.name} and {row.name} differ in {what}: expected one of all to score them on the same "
                    "data; leave the data out, or measure each by itself"
                )


def _lengths(models: Sequence[PreTrainedModel], asked: Sequence[int] | None) -> list[int]:
    """The lengths to measure; [0] for images."""
    images = [model.main_input_name == "pixel_values" for model in models]
    if any(images) != all(images):
        raise UserError("texts and images in one table: expected models of one kind")
    if all(images):
        if asked:
            raise UserError(f"--lengths {asked[0]} with images: it is for texts; leave it out")
        return [0]
    longest = min(map(window_limit, models))
    if asked and max(asked) > longest:
        raise UserError(f"--lengths {max(asked)}: the models take at most {longest} tokens; lower it")
    return list(asked or [length for length in LENGTHS if length <= longest] or [longest])


def _example(models: Sequence[PreTrainedModel], length: int, batch: int) -> dict[str, Tensor]:
    """A batch to time a forward with, the same for all models."""
    if length:
        return texts(min(model.config.vocab_size for model in models), length, batch)
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


def _cast(given: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in given.items()}


def _scores(model: PreTrainedModel, task: Task | None, training_args: ITRDArguments | None) -> dict[str, float]:
    if task is None or training_args is None:
        return {}
    metrics = evaluate(model, replace(training_args, bf16=False), task)[0]  # in the precision that the model has
    model.to(torch.device("cpu"))  # where it is timed
    return metrics


def benchmark_table(record: Mapping[str, Any]) -> Table:
    """Each model in each form: scores, size, latency of every batch, throughput of the largest."""
    names, most = record["metric_names"], str(max(record["batches"]))
    shapes = [(str(length), str(batch)) for length in record["lengths"] for batch in record["batches"]]
    columns = ["", *(SHORT.get(name, name) for name in names), "parameters", "MiB"]
    columns += [f"ms, {_shape(length, batch)}" for length, batch in shapes]
    columns += [f"a second, {_shape(str(length), most)}" for length in record["lengths"]]
    rows = []
    for row in record["rows"]:
        cells = [f"{row['name']}, {row['form']}", *(f"{row['metrics'][name]:.2f}" for name in names)]
        cells += ["" if row["parameters"] is None else f"{row['parameters']:,}", f"{row['mib']:.1f}"]
        times = [row["ms"][length][batch] for length, batch in shapes]
        cells += [f"{time['median']:.1f} ± {time['spread']:.1f}" for time in times]
        fastest = [row["ms"][str(length)][most]["median"] for length in record["lengths"]]
        rows.append([*cells, *(f"{1000 * int(most) / ms:,.0f}" for ms in fastest)])
    data = f"{record['examples']:,} validation examples; " if record["examples"] else ""
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers", "onnxruntime"))
    what = "texts x tokens" if record["lengths"] != [0] else "images"
    caption = (
        f"Latency by {what} in ms, {LATENCY}, and {what.split()[0]} a second ({data}{record['device']}; {versions}):"
    )
    return Table(caption, columns, rows)


def _shape(length: str, batch: str) -> str:
    return batch if length == "0" else f"{batch} x {length}"


def write_plot(path: Path, record: Mapping[str, Any]) -> None:
    """Draw the rows of a record into an .svg, or an .html with the table; either needs no other file."""
    from itrd_nlp.experiments.plots import deployed, svg
    from itrd_nlp.experiments.report_page import html

    drawn = svg(deployed(record))
    page = html([benchmark_table(record)], {"Quality, or size, against latency": [drawn]})
    with writing(path):
        path.write_text(drawn + "\n" if path.suffix == ".svg" else page, encoding="utf-8")
