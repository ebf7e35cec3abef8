"""An exported model against PyTorch's: what both compute of the same inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from itrd_nlp.export.folder import text_settings
from itrd_nlp.export.onnx import operators
from itrd_nlp.models.classes import task_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import FILES, OnnxModel
from itrd_nlp.tasks.base import Task
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import answers_questions, input_names, reads_images
from itrd_nlp.utils.tokenizers import check_fit

TOLERANCE = 1e-4  # of the largest output, between PyTorch and ONNX in fp32
FLIPPED = 0.1  # share of inputs that may exceed it where a network takes signs, which rounding may flip
CHECKED = 16  # validation examples, spread over all
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


def sample_batches(model: PreTrainedModel, source: str, task: Task | None) -> list[dict[str, Tensor]]:
    """Inputs of several batch sizes and, for texts, padded lengths; the last batch has several rows."""
    accepted = input_names(model)
    if task is not None:
        if task.tokenizer is not None:
            check_fit(model, task.tokenizer, source)
        data = task.eval_dataset
        rows = data.__getitems__(np.linspace(0, len(data) - 1, CHECKED).astype(int).tolist())
        names = [name for name in rows[0] if name in accepted and name not in LABELS]
        rows = [{name: row[name] for name in names} for row in rows]
        return [dict(task.collator(part)) for part in (rows[:1], rows[1:4], rows)]
    if reads_images(model):
        from itrd_nlp.vision.models import preprocessing_of

        size = preprocessing_of(source).size
        generator = torch.Generator().manual_seed(0)
        return [{"pixel_values": torch.randn(n, 3, *size, generator=generator)} for n in (1, 3, CHECKED)]
    tokenizer = load_tokenizer(source)
    check_fit(model, tokenizer, source)
    longest = text_settings(model, tokenizer, None)["max_length"]
    batches = []
    for texts in (TEXTS[:1], TEXTS[:3], TEXTS):
        paired = answers_questions(model) or task_of(model.config) == "reranking"
        pairs = [[QUESTION] * len(texts), list(texts)] if paired else [list(texts)]
        tokens = tokenizer(*pairs, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        batches.append({name: tokens[name] for name in tokenizer.model_input_names if name in accepted})
    return batches


def difference(model: PreTrainedModel, path: Path, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Compare the outputs of an exported model with PyTorch's.

    Returns:
        ``mib`` on disk; ``max_difference`` over all outputs but those of padding; ``tolerance``, the difference allowed
        in fp32; and ``beyond``, the share of inputs that exceed it.
    """
    exported = OnnxModel(path)
    differences: list[float] = []
    largest = 1.0
    for batch in batches:
        with torch.inference_mode():
            expected, outputs = model(**batch), exported(**batch)
        of_outputs = []
        for name in exported.outputs:
            largest = max(largest, expected[name].abs().max().item())
            absolute = (expected[name] - outputs[name]).abs()
            if name in exported.token_outputs and "attention_mask" in batch:
                absolute[batch["attention_mask"] == 0] = 0
            of_outputs.append(absolute.flatten(1).amax(1))
        differences += torch.stack(of_outputs).amax(0).tolist()
    tolerance = TOLERANCE * largest
    return {
        "mib": path.stat().st_size / 2**20,
        "max_difference": float(np.max(differences)),  # NaN if any is NaN, unlike max()
        "tolerance": tolerance,
        "beyond": 1 - float(np.mean(np.array(differences) <= tolerance)),
    }


def refuse_difference(row: Mapping[str, float], folder: Path, source: str) -> None:
    """Raise :class:`UserError` where the exported model in fp32 computes something else than PyTorch's."""
    import onnx

    signs = operators(onnx.load(folder / FILES["fp32"]))["Sign"]
    if row["beyond"] > (FLIPPED if signs else 0):
        advice = "try other versions of torch and onnxruntime"
        if signs:
            advice = "rounding flips the signs that a binary network takes, fewer once it is trained"
        raise UserError(
            f"{source}: the exported model differs by {row['max_difference']:.2g} from PyTorch, expected at most "
            f"{row['tolerance']:.2g}; nothing was written: {advice}"
        )
