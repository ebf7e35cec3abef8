"""The tasks of sequence classification: one class a text, several, or a score; and what a trained model says."""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedModel

from itrd_nlp.errors import UserError
from itrd_nlp.loading import load_checkpoint
from itrd_nlp.measure import window_limit
from itrd_nlp.onnx_model import OnnxModel, is_exported
from itrd_nlp.text.answering import load_tokenizer
from itrd_nlp.text.classes import has_head
from itrd_nlp.text.rows import Rows
from itrd_nlp.text.rows_task import RowsTask
from itrd_nlp.text.scores import (
    check_finite,
    confusion,
    f1_of_counts,
    macro_f1,
    matthews,
    multilabel_macro_f1,
    pearson,
    spearman,
)
from itrd_nlp.text.vocabulary import check_fit

SEVERAL = "multi_label_classification"  # what transformers calls it


class ClassificationTask(RowsTask):
    """One class for each text or pair of texts: ``accuracy``, ``macro_f1``, Matthews' correlation.

    Raises:
        UserError: as :class:`RowsTask`; fewer than two classes, or a label that is none of them.
    """

    model_class = AutoModelForSequenceClassification
    metric_names: tuple[str, ...] = ("matthews", "macro_f1", "accuracy")
    problem_type = "single_label_classification"

    def named(self, label: Any) -> list[str]:
        """The classes that a cell of the label column names."""
        return [str(label)] if label not in (None, "") else []

    def encode(self, rows: Rows) -> list[Any]:
        """The class of each row as a number."""
        named = [self.named(label) for label in rows.labels or []]
        if [] in named:
            raise UserError(
                f"row {named.index([])} of '{rows.source}' has no label: expected one in each row, or in none to distil"
            )
        return [self.place(names[0], i, rows.source) for i, names in enumerate(named)]

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says and ``total``, and of two classes ``f1`` of the second, the positive one in GLUE;
        the accuracy of each text, 0 or 100."""
        predicted, gold = _logits(prediction).argmax(1), np.asarray(prediction.label_ids)
        counts, right = confusion(predicted, gold, len(self.class_names)), 100.0 * (predicted == gold)
        scores = {"matthews": matthews(counts), "macro_f1": macro_f1(counts)}
        if len(counts) == 2:
            scores["f1"] = float(f1_of_counts([[counts[1, 1], counts[:, 1].sum(), counts[1].sum()]]))
        return {**scores, "accuracy": float(right.mean()), "total": len(gold)}, {"accuracy": right.tolist()}


class MultilabelTask(ClassificationTask):
    """Any number of classes for each text: those of a positive logit. ``exact_match`` of the whole set, ``micro_f1``.

    A cell holds a list, in CSV as JSON or with ``|``, ``;`` or ``,`` between the names; an empty one names no class.
    """

    metric_names = ("exact_match", "macro_f1", "micro_f1")
    problem_type = SEVERAL

    def named(self, label: Any) -> list[str]:
        """The classes that a cell names."""
        if isinstance(label, str):
            label = _listed(label) if re.match(r"\[.*\]$", label) else re.split(r"\s*[|;,]\s*", label.strip())
        return [str(name) for name in (label if isinstance(label, list) else [label]) if name not in (None, "")]

    def encode(self, rows: Rows) -> list[Any]:
        """1 or 0 for each class of each row."""
        named = [{self.place(name, i, rows.source) for name in self.named(x)} for i, x in enumerate(rows.labels or [])]
        return [[float(i in chosen) for i in range(len(self.class_names))] for chosen in named]

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says and ``total``; of each text how many classes are right, found and gold."""
        predicted, gold = _logits(prediction) > 0, np.asarray(prediction.label_ids) > 0.5
        counts = np.stack([(predicted & gold).sum(1), predicted.sum(1), gold.sum(1)], axis=1)
        scores = {"exact_match": float(100 * (predicted == gold).all(1).mean())}
        scores |= {"macro_f1": multilabel_macro_f1(predicted, gold), "micro_f1": float(f1_of_counts(counts))}
        return {**scores, "total": len(gold)}, {"micro_f1": counts.tolist()}


def _listed(label: str) -> list[Any]:
    """A list as JSON, or as Python prints it."""
    for text in (label, label.replace("'", '"')):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    raise UserError(f'label {label!r:.60}: expected a list such as ["a", "b"], or names with | between them')


class RegressionTask(ClassificationTask):
    """A score for each text or pair of texts, learned by its squared error: Pearson's and Spearman's correlation."""

    metric_names = ("mse", "pearson", "spearman")
    problem_type = "regression"

    def classes(self, train: Rows | None, teacher: Any) -> list[str]:
        """One output."""
        return ["score"]

    def encode(self, rows: Rows) -> list[Any]:
        """The score of each row."""
        return numbers(rows)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says, correlations in percent, 0 of constant outputs; each text's output and score."""
        pairs = np.stack([_logits(prediction).reshape(-1), np.reshape(prediction.label_ids, -1)], axis=1, dtype=float)
        scores = {"mse": float(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)), "pearson": float(pearson(pairs))}
        return {**scores, "spearman": float(spearman(pairs)), "total": len(pairs)}, {"spearman": pairs.tolist()}


def numbers(rows: Rows) -> list[float]:
    """Scores as numbers; raises :class:`UserError` for one that is none."""
    found = []
    for i, label in enumerate(rows.labels or []):
        try:
            found.append(float(label))
        except (TypeError, ValueError):
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise UserError(
                f"row {i} of '{rows.source}' has the score {label!r}: expected a number; see --label_column"
            )
    return found


def _logits(prediction: EvalPrediction) -> np.ndarray:
    found = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return check_finite(found)


@torch.no_grad()
def classify(source: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """What a trained classifier says of one text or pair of texts.

    Args:
        source: folder or Hub id of a model with a head for sequence classification, exported or not.

    Returns:
        ``label`` and the probability of each class in ``scores``; ``labels`` where there may be several; of regression
        the ``score`` alone.

    Raises:
        UserError: no such model, or an empty text.
    """
    if not text.strip():
        raise UserError("the text is empty: expected text to classify")
    model, tokenizer = _load_classifier(source), load_tokenizer(source)
    check_fit(model, tokenizer, source)
    longest, config = min(tokenizer.model_max_length, window_limit(model)), model.config
    tokens = tokenizer(text, text_pair, truncation=True, max_length=longest, return_tensors="pt")
    logits = model(**tokens).logits[0].float()
    if len(logits) == 1:
        return {"score": logits.item()}
    several = config.problem_type == SEVERAL
    chances = (logits.sigmoid() if several else logits.softmax(0)).tolist()
    scores = {config.id2label[i]: chance for i, chance in enumerate(chances)}
    if several:
        return {"labels": [name for name, chance in scores.items() if chance > 0.5], "scores": scores}
    return {"label": max(scores, key=scores.__getitem__), "scores": scores}


def _load_classifier(source: str) -> PreTrainedModel:
    if is_exported(source):
        exported = OnnxModel(source)
        if exported.outputs != ["logits"] or not has_head(exported.config, AutoModelForSequenceClassification):
            raise UserError(
                f"'{source}' was exported of {exported.config.architectures}: expected a classifier of texts"
            )
        return exported
    model, new = load_checkpoint(source, AutoModelForSequenceClassification)
    if new:
        raise UserError(f"model '{source}' has no head for classification: distil or fine-tune it first")
    return model
