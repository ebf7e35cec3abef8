"""The files beside an exported model: tokenizer or image processor, ``run.py`` and a README."""

import logging
import re
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from itrd_nlp.export import run_onnx
from itrd_nlp.export.quantization import verdict
from itrd_nlp.inference.answering import DEFAULTS, MAX_LENGTH
from itrd_nlp.inference.saved_models import default_length
from itrd_nlp.models.classes import task_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import FILES, SETTINGS
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.question_answering.spans import check_counts
from itrd_nlp.tasks.question_answering.windows import check_threshold, question_tokens, window_lengths
from itrd_nlp.tasks.reranking.task import RerankingTask
from itrd_nlp.tasks.tokenising import text_length
from itrd_nlp.training.record import shown
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import answers_questions, window_limit
from itrd_nlp.utils.tables import Table, metric_title
from itrd_nlp.utils.tokenizers import check_tokenizer, for_words, save_processor

logger = logging.getLogger(__name__)

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # tokenizers of no model's own class
PACKAGE_IMPORT = re.compile(r"^from (itrd_nlp\.[\w.]+) import", re.MULTILINE)
README = """# {architecture} as ONNX

`onnx/model.onnx` computes in fp32; `onnx/model_quantized.onnx`, where there is one, is the same with int8 weights.
Written by `itrd export`, which compared both with PyTorch:

{table}
{quantisation}
    pip install {libraries}
    python run.py {inputs}

`run.py` needs nothing else and shows how to call the model; `--model onnx/model_quantized.onnx` selects the int8 model.
`export.json` holds what was measured, and how texts are read: as by the evaluation that this table shows.
{calibration}"""
CALIBRATED = """
Probabilities of `run.py` are calibrated: it divides the logits by `calibration_temperature` of `config.json`, {:.4f}.
Other libraries, transformers.js among them, leave the logits as they are.
"""

INPUTS = {  # task -> what a model's script reads
    "squad": "QUESTION CONTEXT",
    **dict.fromkeys(("classification", "multilabel", "regression", "embedding"), "TEXT [TEXT]"),
    "tagging": "TEXT",
    "reranking": "QUERY DOCUMENT [DOCUMENT ...]",
    "images": "IMAGE",
}


def text_settings(
    model: PreTrainedModel, tokenizer: Any, task: Task | None, text_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How ``run.py`` reads texts: as the task that scored the model, or as ``text_options`` say, or by default.

    Raises:
        UserError: a tokenizer that evaluation also refuses.
    """
    check_tokenizer(tokenizer)
    chosen = text_options or {} if task is None else _options_of(task)
    longest, stride = chosen.get("max_length"), chosen.get("doc_stride")
    if answers_questions(model):
        lengths = window_lengths(tokenizer, longest, stride, min(MAX_LENGTH, window_limit(model)))
        settings: dict[str, Any] = dict(zip(("max_length", "doc_stride"), lengths, strict=True))
        settings["question_tokens"] = question_tokens(settings["max_length"])
        settings |= {name: chosen.get(name, value) for name, value in DEFAULTS.items()}
        check_counts(settings["n_best"], settings["max_answer_length"])
        check_threshold(settings["null_threshold"] or 0.0)
    else:
        kind = task_of(model.config)
        ranks = kind == "reranking" or chosen.get("ranks", False)
        default = default_length(model.name_or_path, "reranking" if ranks else kind)
        settings = {"max_length": text_length(tokenizer, longest, window_limit(model), default), "ranks": ranks}
        if kind == "tagging":
            for_words(tokenizer)
    settings |= {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "truncation_side")}
    return {**settings, "split_special_tokens": bool(tokenizer.split_special_tokens)}


def _options_of(task: Task) -> dict[str, Any]:
    """How a task reads texts."""
    chosen = {name: getattr(task, name) for name in SETTINGS if hasattr(task, name)}
    if not getattr(task, "has_unanswerable", False):
        chosen["null_threshold"] = None
    return {**chosen, "ranks": isinstance(task, RerankingTask)}


def write_image_files(folder: Path, model: PreTrainedModel, source: str) -> dict[str, Any]:
    """Write the model's image processor, and ``pixels.py``; returns what ``export.json`` says of them."""
    from itrd_nlp.vision import pixels
    from itrd_nlp.vision.models import preprocessing_of
    from itrd_nlp.vision.steps import steps_of

    preprocessing = preprocessing_of(source)
    if saver := preprocessing.saver(model):
        saver.save_pretrained(folder)
    shutil.copy(pixels.__file__, folder / "pixels.py")
    return {"preprocessing": steps_of(preprocessing), "backend": getattr(preprocessing.processor, "backend", None)}


def write_tokenizer(folder: Path, source: str, kind: str, max_length: int, has_types: bool) -> None:
    """Write the model's tokenizer; warns where the model reads token types that transformers.js would not pass.

    Args:
        kind: the model's task; before words that get tags, some tokenizers must put a blank.
        max_length: tokens at which texts are cut, here and by transformers.js; contexts of questions are not.
        has_types: whether the model reads token types.
    """
    tokenizer = load_tokenizer(source)
    if kind == "tagging":
        tokenizer = for_words(tokenizer)
    if kind != "squad":
        tokenizer.model_max_length = max_length
    save_processor(tokenizer, folder)
    if has_types and (class_name := type(tokenizer).__name__) in GENERIC:
        logger.warning(
            f"[export] a tokenizer of class {class_name}: transformers.js passes no token types for it, so that pairs "
            "of texts get other scores in a browser; all else is unaffected"
        )


def write_script(folder: Path, record: Mapping[str, Any], kind: str) -> None:
    """Write ``run.py``, the modules of this package that it imports, and a README, for a task."""
    for name, text in _script_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    inputs = INPUTS["reranking" if record["settings"].get("ranks") else kind]
    libraries = "onnxruntime tokenizers numpy"
    if kind == "images":
        libraries = "onnxruntime numpy pillow"
        if record["preprocessing"] is None:  # the processor itself runs
            libraries += " transformers torch torchvision"
    values = {**record, "table": export_table(record).markdown(), "inputs": inputs, "libraries": libraries}
    values["quantisation"] = f"\n{verdict(record['quantisation'])}\n" if record["quantisation"] else ""
    values["calibration"] = CALIBRATED.format(record["temperature"]) if record["temperature"] else ""
    readme = README.format(**values)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def deployed_mib(folder: Path, form: str) -> float:
    """MiB of all that an exported model needs where it runs: its ONNX file, and the JSON files beside it.

    Args:
        folder: of :func:`itrd_nlp.export.export.export`; scripts, README and the other ONNX file do not count.
        form: int8 or fp32.

    Raises:
        UserError: the folder has no model in that form.
    """
    model = folder / FILES[form]
    if not model.is_file():
        raise UserError(f"{folder} has no {form} model: expected {FILES[form]} of `itrd export`")
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".md", ".py")]
    return sum(path.stat().st_size for path in (model, *others)) / 2**20


def _script_files() -> dict[str, str]:
    """File -> text of ``run.py`` and all modules of this package that it imports, here by their bare names."""
    files: dict[str, str] = {}
    modules = {"run.py": run_onnx.__name__}
    while modules:
        file, module = modules.popitem()
        text = Path(str(import_module(module).__file__)).read_text(encoding="utf-8")
        files[file] = PACKAGE_IMPORT.sub(lambda match: f"from {match[1].rpartition('.')[2]} import", text)
        for name in PACKAGE_IMPORT.findall(text):
            if (imported := f"{name.rpartition('.')[2]}.py") not in files:
                modules[imported] = name
    return files


def export_table(record: Mapping[str, Any]) -> Table:
    """The model in each form: size, largest difference from PyTorch, and scores if there was evaluation data."""
    names = record["metric_names"]
    rows = []
    result = record["quantisation"]
    for form, row in record["rows"].items():
        name = form
        if form == "ONNX int8" and result and result["fp32_nodes"]:
            name += f", {len(result['fp32_nodes'])} of {result['nodes']} nodes in fp32"
        cells = [name, f"{row['mib']:.1f}", f"{row['max_difference']:.1e}" if "max_difference" in row else ""]
        rows.append([*cells, *(shown(name, row["metrics"][name]) for name in names)])
    data = f"{record['examples']:,} validation examples" if record["examples"] else "built-in inputs"
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers", "onnxruntime"))
    caption = f"{record['architecture']}, {record['parameters']:,} parameters ({data}; {versions}):"
    return Table(caption, ["", "MiB", "largest difference", *(metric_title(name) for name in names)], rows)
