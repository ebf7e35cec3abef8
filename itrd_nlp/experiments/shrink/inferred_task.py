"""The task that a model and its data are for, where nobody names it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from itrd_nlp.inference.saved_models import saved_task
from itrd_nlp.models.weight_files import cached_path
from itrd_nlp.tasks.cells import is_bracketed
from itrd_nlp.tasks.reranking.rows import DOCUMENTS, PAIRS, POSITIVES, QUERIES
from itrd_nlp.tasks.rows import CLASSES, LAYOUTS, SCORES, WORDS
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.utils.errors import UserError


def infer_task(model: str, validation_file: str) -> str:
    """The task of a model's head; of a model without one, that of the columns of its validation data.

    Args:
        model: folder or Hub id.
        validation_file: see :func:`itrd_nlp.tasks.tabular.read_table`.

    Returns:
        A name of ``itrd_nlp.experiments.tasks.TASKS``. Pairs of texts with a score are for embeddings where the model
        is a sentence encoder, and for regression otherwise.

    Raises:
        UserError: an image classifier, or neither a head nor labels.
    """
    task = saved_task(model)
    if task == "images":
        raise UserError(f"{model} classifies images: expected a text encoder; distil images with `itrd distill`")
    if task not in ("embedding", None):
        return task
    columns = read_table(validation_file, "validation").columns
    names = {*columns}
    if {"question", "context"} <= names:
        return "squad"
    if names & {*QUERIES} and (names & {*POSITIVES} or (names & {*DOCUMENTS} and names & {*PAIRS.labels})):
        return "reranking"
    if names & {"tokens", "words"} and names & {*WORDS.labels}:
        return "tagging"
    label = next((name for name in (*SCORES.labels, *CLASSES.labels) if name in names), None)
    layout = next((layout for layout in LAYOUTS if names >= {*layout}), None)
    labels = [] if label is None else [value for value in columns[label][:] if value not in (None, "")]
    if layout is None or not labels:
        raise UserError(
            f"{model} has no head, and '{validation_file}' no texts with labels (its columns: {', '.join(columns)}): "
            "expected one of them; take a fine-tuned model, or name the task (--task) and the columns (--label_column)"
        )
    if any(is_bracketed(value) if isinstance(value, str) else isinstance(value, list | tuple) for value in labels):
        return "multilabel"
    if label not in ("label", "labels") or _are_scores(labels):
        return "embedding" if len(layout) == 2 and cached_path(model, "modules.json") is not None else "regression"
    return "classification"


def _are_scores(labels: Sequence[Any]) -> bool:
    """Whether labels are numbers, and not all of them whole."""
    with suppress(TypeError, ValueError):
        return any(float(label) % 1 for label in labels)
    return False
