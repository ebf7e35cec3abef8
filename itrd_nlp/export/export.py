"""A trained model as a folder that onnxruntime and tokenizers run alone, checked against PyTorch."""

import inspect
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from itrd_nlp.export import run_onnx
from itrd_nlp.export.onnx import need_exporter, operators, write_model
from itrd_nlp.inference.answering import DEFAULTS, MAX_LENGTH
from itrd_nlp.inference.saved_models import load_trained, task_of
from itrd_nlp.inference.texts import text_length
from itrd_nlp.models.classes import classes_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import FILES, RECORD, OnnxModel
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.question_answering.windows import question_tokens, window_lengths
from itrd_nlp.tasks.token_classification import check_words
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.io import make_folder, write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit
from itrd_nlp.utils.tables import SHORT, Table
from itrd_nlp.utils.tokenizers import check_fit, check_tokenizer

TOLERANCE = 1e-4  # of the largest output, between PyTorch and ONNX in fp32
FLIPPED = 0.1  # share of inputs that may be beyond it where a network takes signs, which rounding may flip
CHECKED = 16  # validation examples, spread over all
OURS = re.compile(r"^from (itrd_nlp\.[\w.]+) import", re.MULTILINE)  # a module that run.py takes along
LABELS = ("labels", "start_positions", "end_positions")
QUESTION = "Who wrote the first programme?"
TEXTS = (
    "Ada Lovelace wrote the first programme.",
    "Ada.",
    "In 1843, Ada Lovelace published a note on Charles Babbage's engine; it holds what is called the first programme.",
    "Zürich, 東京 and São Paulo cost €1,299.50 (or 3/4 of that)?! " * 3,
    "The engine was to weave algebraic patterns just as the Jacquard loom weaves flowers and leaves. " * 12,
    "It might act upon other things besides number. " * 60,
)


def export(
    source: str,
    output: Path,
    task: Task | None = None,
    score: Callable[[PreTrainedModel], Mapping[str, float]] | None = None,
    int8: bool = True,
) -> dict[str, Any]:
    """Write a model as ONNX, in fp32 and with dynamic int8 quantisation, and measure both beside PyTorch.

    Args:
        source: folder or Hub id of a trained text encoder, with whatever head, or image classifier.
        output: folder to make; one that an earlier export wrote is replaced.
        task: its validation data check and score the exported models; None: built-in texts, or noise, check them.
        score: metrics of a model on those data, in fp32.
        int8: False leaves that file out.

    Returns:
        What ``export.json`` in the folder holds.

    Raises:
        UserError: no trained model, one that cannot be exported, a folder of something else, or outputs that differ.
    """
    need_exporter()
    if output.exists() and not (output / RECORD).is_file():
        raise UserError(f"--output {output}: there is something else; expected a new folder, or one of `itrd export`")
    model = load_trained(source)
    settings = {} if _of_images(model) else text_settings(model, load_tokenizer(source), task)
    batches = check_batches(model, source, task)
    make_folder(output.parent)
    with writing(output), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as aside:
        folder = Path(aside) / "exported"
        write_model(model, batches[-1], folder, int8)
        rows: dict[str, Any] = {"PyTorch fp32": {"mib": size_mib(model)}}
        for form in list(FILES)[: 1 + int8]:
            rows[f"ONNX {form}"] = difference(model, folder / FILES[form], batches)
        refuse_difference(rows["ONNX fp32"], folder, source)
        if score is not None:
            rows["PyTorch fp32"]["metrics"] = score(model)
            for form in list(FILES)[: 1 + int8]:
                rows[f"ONNX {form}"]["metrics"] = score(OnnxModel(folder / FILES[form]))
        record = _describe(model, source, task, rows) | {"settings": settings}
        _finish(folder, model, source, record)
        shutil.rmtree(output, ignore_errors=True)
        folder.rename(output)
    return record


def check_batches(model: PreTrainedModel, source: str, task: Task | None) -> list[dict[str, Tensor]]:
    """Inputs of several batch sizes and, for texts, lengths, padded; the last batch has several rows."""
    accepted = inspect.signature(model.forward).parameters
    if task is not None:
        if task.tokenizer is not None:
            check_fit(model, task.tokenizer, source)
        data = task.eval_dataset
        rows = data.__getitems__(np.linspace(0, len(data) - 1, CHECKED).astype(int).tolist())
        names = [name for name in rows[0] if name in accepted and name not in LABELS]
        rows = [{name: row[name] for name in names} for row in rows]
        return [dict(task.collator(some)) for some in (rows[:1], rows[1:4], rows)]
    if _of_images(model):
        from itrd_nlp.vision.models import preprocessing_of

        size = preprocessing_of(source).size
        draw = torch.Generator().manual_seed(0)
        return [{"pixel_values": torch.randn(n, 3, *size, generator=draw)} for n in (1, 3, CHECKED)]
    tokenizer = load_tokenizer(source)
    check_fit(model, tokenizer, source)
    made, longest = [], text_settings(model, tokenizer, None)["max_length"]
    for texts in (TEXTS[:1], TEXTS[:3], TEXTS):
        pairs = [[QUESTION] * len(texts), list(texts)] if "start_positions" in accepted else [list(texts)]
        tokens = tokenizer(*pairs, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        made.append({name: tokens[name] for name in tokenizer.model_input_names if name in accepted})
    return made


def _of_images(model: PreTrainedModel) -> bool:
    return model.main_input_name == "pixel_values"


def text_settings(model: PreTrainedModel, tokenizer: Any, task: Task | None) -> dict[str, Any]:
    """How ``run.py`` reads texts: as the task does that scored the model, else as evaluation does by default.

    Raises:
        UserError: a tokenizer that evaluation refuses, too.
    """
    check_tokenizer(tokenizer)
    settings: dict[str, Any] = {"max_length": task.max_length if task else None}
    if "start_positions" in inspect.signature(model.forward).parameters:
        longest = min(MAX_LENGTH, window_limit(model))
        lengths = window_lengths(tokenizer, settings["max_length"], getattr(task, "doc_stride", None), longest)
        settings = dict(zip(("max_length", "doc_stride"), lengths, strict=True))
        settings["question_tokens"] = question_tokens(settings["max_length"])
        settings |= {name: getattr(task, name, value) for name, value in DEFAULTS.items()}
        if not getattr(task, "has_unanswerable", False):
            settings["null_threshold"] = None
    else:
        settings["max_length"] = text_length(model, tokenizer, settings["max_length"])
        if task_of(model.config) == "tagging":
            check_words(tokenizer)
    settings |= {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "truncation_side")}
    return {**settings, "split_special_tokens": bool(tokenizer.split_special_tokens)}


def difference(model: PreTrainedModel, path: Path, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """How far an exported model's outputs are from PyTorch's.

    Returns:
        ``mib`` on disk, ``max_difference`` over all outputs but those of padding, ``tolerance``: what fp32 may differ,
        and ``beyond``: the share of inputs that differ by more.
    """
    exported = OnnxModel(path)
    differences: list[float] = []
    largest = 1.0
    for batch in batches:
        with torch.inference_mode():
            wanted, got = model(**batch), exported(**batch)
        padding = 1 - batch.get("attention_mask", torch.ones(1, 1, dtype=torch.int64))
        each = []
        for name in exported.outputs:
            largest = max(largest, wanted[name].abs().max().item())
            apart = (wanted[name] - got[name]).abs()
            if apart.shape[:2] == padding.shape:  # what is said of padding nobody reads
                apart[padding.bool()] = 0
            each.append(apart.flatten(1).amax(1))
        differences += torch.stack(each).amax(0).tolist()
    tolerance = TOLERANCE * largest
    return {
        "mib": path.stat().st_size / 2**20,
        "max_difference": float(np.max(differences)),  # NaN where one is
        "tolerance": tolerance,
        "beyond": 1 - float(np.mean(np.array(differences) <= tolerance)),
    }


def refuse_difference(row: Mapping[str, float], folder: Path, source: str) -> None:
    """Raise :class:`UserError` where the exported model in fp32 is not the one in PyTorch."""
    allowed = FLIPPED if operators(folder / FILES["fp32"])["Sign"] else 0
    if row["beyond"] > allowed:
        raise UserError(
            f"{source}: the exported model differs by {row['max_difference']:.2g} from PyTorch, expected at most "
            f"{row['tolerance']:.2g}; nothing was written: try other versions of torch and onnxruntime"
        )


def _describe(model: PreTrainedModel, source: str, task: Task | None, rows: dict[str, Any]) -> dict[str, Any]:
    """The record of an export."""
    record: dict[str, Any] = {"source": source_name(source), "architecture": type(model).__name__}
    record |= {"parameters": parameter_count(model), "labels": classes_of(model.config)}
    if _of_images(model):
        from itrd_nlp.vision.models import preprocessing_of
        from itrd_nlp.vision.steps import steps_of

        own = preprocessing_of(source)
        record["preprocessing"] = steps_of(own)
        record["backend"] = getattr(own.processor, "backend", None)
    record |= {"rows": rows, "metric_names": list(task.metric_names) if task else []}
    record["examples"] = len(task.eval_dataset) if task else 0
    record |= provenance(torch.device("cpu"))
    record["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    return record


def source_name(source: str) -> str:
    """A Hub id, or the name of a folder, without where it lies."""
    return Path(source).name if Path(source).is_dir() else source


def _finish(folder: Path, model: PreTrainedModel, source: str, record: dict[str, Any]) -> None:
    """What lies beside the models: configuration, tokenizer, how to run them, and what was measured."""
    if record["settings"]:
        load_tokenizer(source).save_pretrained(folder)
    else:
        from itrd_nlp.vision import pixels
        from itrd_nlp.vision.models import preprocessing_of

        if saver := preprocessing_of(source).saver(model):
            saver.save_pretrained(folder)
        shutil.copy(pixels.__file__, folder / "pixels.py")
    for name, text in script_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    given = "IMAGE" if "preprocessing" in record else "TEXT [TEXT]"
    if "QuestionAnswering" in record["architecture"]:
        given = "QUESTION CONTEXT"
    needed = NEEDED["text" if record["settings"] else "pillow" if record["preprocessing"] else "processor"]
    (folder / "README.md").write_text(
        README.format(table=export_table(record).markdown(), given=given, needed=needed, **record), encoding="utf-8"
    )
    write_json(folder / RECORD, record)


def script_files() -> dict[str, str]:
    """``run.py`` and the modules of this package that it imports, beside which they import each other by name."""
    made, waiting = {}, {"run.py": run_onnx.__name__}
    while waiting:
        file, name = waiting.popitem()
        text = Path(str(import_module(name).__file__)).read_text(encoding="utf-8")
        waiting |= {f"{found.rpartition('.')[2]}.py": found for found in OURS.findall(text)}
        made[file] = OURS.sub(lambda found: f"from {found[1].rpartition('.')[2]} import", text)
        waiting = {file: name for file, name in waiting.items() if file not in made}
    return made


def export_table(record: Mapping[str, Any]) -> Table:
    """The model in each form: size, how far its outputs are from PyTorch's, and its scores where there were data."""
    names = record["metric_names"]
    rows = []
    for form, row in record["rows"].items():
        cells = [form, f"{row['mib']:.1f}", f"{row['max_difference']:.1e}" if "max_difference" in row else ""]
        rows.append([*cells, *(f"{row['metrics'][name]:.2f}" for name in names)])
    data = f"{record['examples']:,} validation examples" if record["examples"] else "built-in inputs"
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers", "onnxruntime"))
    caption = f"{record['architecture']}, {record['parameters']:,} parameters ({data}; {versions}):"
    return Table(caption, ["", "MiB", "largest difference", *(SHORT.get(name, name) for name in names)], rows)


NEEDED = {  # by run.py
    "text": "onnxruntime tokenizers numpy",
    "pillow": "onnxruntime numpy pillow",
    "processor": "onnxruntime numpy pillow transformers torch torchvision",
}
README = """# {architecture} as ONNX

`model.onnx` computes in fp32; `model_int8.onnx`, where there is one, is the same with int8 weights. Written by
`itrd export`, which compared both with PyTorch:

{table}

    pip install {needed}
    python run.py {given}

`run.py` needs nothing else and shows how to call the model; `--model model_int8.onnx` takes the other one.
`export.json` holds what was measured, and how texts are read: as by the evaluation that this table shows.
"""
