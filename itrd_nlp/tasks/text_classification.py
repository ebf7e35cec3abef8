"""The tasks of sequence classification: one class a text, several, or a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, EvalPrediction

from itrd_nlp.tasks.labels import Labels, Splits, read_class_sets, read_classes, read_scores
from itrd_nlp.tasks.metrics import (
    check_finite,
    confusion,
    f1_of_counts,
    macro_f1,
    matthews,
    multilabel_macro_f1,
    pearson,
    spearman,
)
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.rows_task import RowsTask

SEVERAL = "multi_label_classification"  # what transformers calls it


class ClassificationTask(RowsTask):
    """One class for each text or pair of texts: ``accuracy``, ``macro_f1``, Matthews' correlation.

    Raises:
        UserError: as :class:`RowsTask`; fewer than two classes, or a label that is none of them.
    """

    name = "classification"
    model_class = AutoModelForSequenceClassification
    metric_names: tuple[str, ...] = ("matthews", "macro_f1", "accuracy")
    problem_type = "single_label_classification"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self.problem_type == ClassificationTask.problem_type and len(self.class_names) == 2:
            self.metric_names = ("matthews", "macro_f1", "f1", "accuracy")

    def understand(self, splits: Splits, known: Sequence[str]) -> Labels:
        """A class of each row."""
        return read_classes(splits, known)

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

    A cell holds a list, in CSV as JSON, as Python or numpy print it, or with ``|``, ``;`` or ``,`` between the names;
    an empty one names no class. Lists of equally many 0 and 1 are a number for each class.
    """

    name = "multilabel"
    metric_names = ("exact_match", "macro_f1", "micro_f1")
    problem_type = SEVERAL

    def understand(self, splits: Splits, known: Sequence[str]) -> Labels:
        """1 or 0 for each class of each row."""
        return read_class_sets(splits, known)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says and ``total``; of each text how many classes are right, found and gold."""
        predicted, gold = _logits(prediction) > 0, np.asarray(prediction.label_ids) > 0.5
        counts = np.stack([(predicted & gold).sum(1), predicted.sum(1), gold.sum(1)], axis=1)
        scores = {"exact_match": float(100 * (predicted == gold).all(1).mean())}
        scores |= {"macro_f1": multilabel_macro_f1(predicted, gold), "micro_f1": float(f1_of_counts(counts))}
        return {**scores, "total": len(gold)}, {"micro_f1": counts.tolist()}


class RegressionTask(ClassificationTask):
    """A score for each text or pair of texts, learned by its squared error: Pearson's and Spearman's correlation."""

    name = "regression"
    metric_names = ("mse", "pearson", "spearman")
    problem_type = "regression"

    def understand(self, splits: Splits, known: Sequence[str]) -> Labels:
        """The score of each row, and one output."""
        return Labels(["score"], read_scores(splits), [[], []])

    def understood(self, rows: Rows, values: list[Any] | None) -> str:
        """The range of the scores."""
        return "no labels" if values is None else range_of(values)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says, correlations in percent, 0 of constant outputs; each text's output and score."""
        pairs = np.stack([_logits(prediction).reshape(-1), np.reshape(prediction.label_ids, -1)], axis=1, dtype=float)
        scores = {"mse": float(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)), "pearson": float(pearson(pairs))}
        return {**scores, "spearman": float(spearman(pairs)), "total": len(pairs)}, {"spearman": pairs.tolist()}


def range_of(scores: list[float | None]) -> str:
    """Between which numbers scores are, in words."""
    given = [score for score in scores if score is not None]
    return f"scores from {min(given):g} to {max(given):g}"


def _logits(prediction: EvalPrediction) -> np.ndarray:
    found = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return check_finite(found)
