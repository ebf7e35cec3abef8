"""The tasks of sequence classification: one class for each text, several, or a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, EvalPrediction

from itrd_nlp.tasks.calibration import calibrate
from itrd_nlp.tasks.labels import Labels, Splits, read_class_sets, read_classes, read_scores
from itrd_nlp.tasks.metrics import (
    confusion,
    f1_of_counts,
    logits_of,
    macro_f1,
    matthews,
    multilabel_macro_f1,
    pearson,
    spearman,
)
from itrd_nlp.tasks.rows import SCORES, Rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.teacher_files import LOGITS, PROBS, SCORE
from itrd_nlp.utils.modeling import INDEPENDENT


class ClassificationTask(RowsTask):
    """One class for each text or pair of texts: ``accuracy``, ``macro_f1``, Matthews' correlation.

    Raises:
        UserError: as :class:`RowsTask`; fewer than two classes, or a label that is none of them.
    """

    name = "classification"
    model_class = AutoModelForSequenceClassification
    metric_names: tuple[str, ...] = ("matthews", "macro_f1", "accuracy")
    problem_type = "single_label_classification"
    output_columns: tuple[str, ...] = (LOGITS, PROBS)
    has_probabilities = True

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """A class of each row; two classes have a further metric."""
        labels = read_classes(splits, head_classes)
        if len(labels.classes) == 2:
            self.metric_names = ("matthews", "macro_f1", "f1", "accuracy")
        return labels

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics of `metric_names` and ``total``; with two classes ``f1`` is of the second, GLUE's positive one.
        For each text its accuracy, 0 or 100."""
        predicted, gold = logits_of(prediction.predictions).argmax(1), np.asarray(prediction.label_ids)
        counts, right = confusion(predicted, gold, len(self.class_names)), 100.0 * (predicted == gold)
        scores = {"matthews": matthews(counts), "macro_f1": macro_f1(counts)}
        if len(counts) == 2:
            scores["f1"] = float(f1_of_counts([[counts[1, 1], counts[:, 1].sum(), counts[1].sum()]]))
        return {**scores, "accuracy": float(right.mean()), "total": len(gold)}, {
            "accuracy": self.in_file_order(right).tolist()
        }


class MultilabelTask(ClassificationTask):
    """Any number of classes for each text: those with a positive logit. ``exact_match`` is of the complete set.

    A cell holds a list, in CSV as JSON, as Python or numpy print it, or as names with ``|``, ``;`` or ``,`` between
    them; an empty cell names no class. Lists of equal length of 0 and 1 have a number for each class.
    """

    name = "multilabel"
    metric_names = ("exact_match", "macro_f1", "micro_f1")
    problem_type = INDEPENDENT

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """1 or 0 for each class of each row."""
        return read_class_sets(splits, head_classes)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics of `metric_names` and ``total``; for each text how many classes are right, found and gold."""
        predicted, gold = logits_of(prediction.predictions) > 0, np.asarray(prediction.label_ids) > 0.5
        counts = np.stack([(predicted & gold).sum(1), predicted.sum(1), gold.sum(1)], axis=1)
        scores = {"exact_match": float(100 * (predicted == gold).all(1).mean())}
        scores |= {"macro_f1": multilabel_macro_f1(predicted, gold), "micro_f1": float(f1_of_counts(counts))}
        return {**scores, "total": len(gold)}, {"micro_f1": self.in_file_order(counts).tolist()}

    def calibration(self, prediction: EvalPrediction) -> dict[str, Any] | None:
        """Of the sigmoid of each logit: one decision for each text and class."""
        logits, gold = logits_of(prediction.predictions), np.asarray(prediction.label_ids)
        return calibrate(logits.ravel(), gold.ravel(), np.repeat(np.arange(len(gold)), gold.shape[1]))


class RegressionTask(ClassificationTask):
    """A score for each text or pair of texts, learned by its squared error: Pearson's and Spearman's correlation."""

    name = "regression"
    columns = SCORES
    metric_names = ("mse", "pearson", "spearman")
    problem_type = "regression"
    output_columns = (SCORE,)
    has_probabilities = False

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The score of each row, and one output."""
        return Labels(["score"], read_scores(splits), [[], []])

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """The range of the scores."""
        return "no labels" if values is None else range_of(values)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics of `metric_names`, correlations in percent, 0 for constant outputs; each text's output and
        score."""
        outputs = logits_of(prediction.predictions).reshape(-1)
        pairs = np.stack([outputs, np.reshape(prediction.label_ids, -1)], axis=1, dtype=float)
        scores = {"mse": float(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)), "pearson": float(pearson(pairs))}
        scores |= {"spearman": float(spearman(pairs)), "total": len(pairs)}
        return scores, {"spearman": self.in_file_order(pairs).tolist()}


def range_of(scores: list[float | None]) -> str:
    """The lowest and the highest score, in words."""
    numbers = [score for score in scores if score is not None]
    return f"scores from {min(numbers):g} to {max(numbers):g}"
