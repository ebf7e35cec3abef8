"""Metrics of classes, tags and scores in percent, also with the weights that a bootstrap draws; numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from itrd_nlp.utils.errors import UserError

# the same of one task alone, so that other tasks are not scored again: questions keep combining marks, two classes
# are ranked by their log-odds
TASK_VERSIONS = {"squad": 1, "toy": 1, "reranking": 1}
SCORES_VERSION = 3  # of what tasks score for the same outputs; scores are kept on disk: raise it with each change


def logits_of(predictions: Any) -> np.ndarray:
    """The logits of a model's predictions, the first of several outputs; refuses NaN as :func:`check_finite`."""
    return check_finite(predictions[0] if isinstance(predictions, tuple) else predictions)


def relevance(logits: Any) -> Any:
    """(n,) scores of a reranker's (n, 1) logits; of (n, 2), the log-odds of the second class."""
    return logits[..., -1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., -1]


def check_finite(outputs: np.ndarray) -> np.ndarray:
    """Return the outputs of a model; raise :class:`UserError` where one is NaN, whose argmax means nothing."""
    broken = np.isnan(outputs).reshape(len(outputs), -1).any(1)
    if broken.any():
        raise UserError(
            f"the model's outputs are NaN for {broken.sum()} of {len(outputs)} validation examples: expected numbers; "
            "lower the learning rate, or train and evaluate in fp32"
        )
    return outputs


def f1_of_counts(counts: Any, weights: np.ndarray | None = None) -> Any:
    """Micro-averaged F1 in percent; 0 without predicted and gold labels, as in seqeval.

    Args:
        counts: (n, 3) for each example: how many labels are right, predicted and gold.
        weights: (b, n) how often each example counts, see :func:`itrd_nlp.experiments.intervals.resample`; None: once.

    Returns:
        A number, or (b,) of them.

    Example:
        >>> float(f1_of_counts([[1, 1, 1], [0, 1, 1]]))
        50.0
    """
    counts = np.asarray(counts)
    right, predicted, gold = (counts.sum(0) if weights is None else weights @ counts).T
    return 200 * right / np.maximum(predicted + gold, 1)


def pearson(pairs: Any, weights: np.ndarray | None = None) -> Any:
    """Pearson's correlation in percent; 0 where one side is constant, for which it is not defined.

    Args:
        pairs: (n, 2) predictions and gold scores.
        weights, returns: as of :func:`f1_of_counts`.

    Example:
        >>> float(pearson([[1.0, 1.0], [2.0, 2.0], [3.0, 4.0]]).round(4))
        98.1981
    """
    x, y = np.asarray(pairs, np.float64).T
    return _correlation(x, y, np.ones(len(x)) if weights is None else weights)


def spearman(pairs: Any, weights: np.ndarray | None = None) -> Any:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs; arguments as of it.

    Example:
        >>> round(float(spearman([[1.0, 0.0], [5.0, 1.0], [7.0, 9.0]])), 9)
        100.0
    """
    x, y = np.asarray(pairs, np.float64).T
    weights = np.ones(len(x)) if weights is None else weights
    return _correlation(_ranks(x, weights), _ranks(y, weights), weights)


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Any:
    """Pearson's correlation in percent of (..., n) values with (..., n) weights."""
    drawn = weights > 0
    constant = np.zeros(weights.shape[:-1], bool)
    centred = []
    for values in (x, y):
        values = np.broadcast_to(values, weights.shape)
        high = np.where(drawn, values, -np.inf).max(-1)
        constant |= high == np.where(drawn, values, np.inf).min(-1)
        values = values - (weights * values).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
        # squares of very large or small numbers would overflow, or vanish
        largest = np.where(drawn, np.abs(values), 0).max(-1, keepdims=True)
        centred.append(values / np.where(largest > 0, largest, 1))
    x, y = centred
    both = (weights * x * y).sum(-1)
    scale = np.sqrt((weights * x**2).sum(-1)) * np.sqrt((weights * y**2).sum(-1))
    correlation = np.clip(both / np.where(scale > 0, scale, 1), -1, 1)  # rounding could leave [-1, 1]
    return np.where(constant | (scale == 0), 0.0, 100 * correlation)[()]


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(..., n) ranks of n values, each of which occurs as often as its (..., n) weights say."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # of each distinct value
    counts = np.add.reduceat(weights[..., order], first, axis=-1)
    distinct = np.empty(len(values), int)  # the index of each value among the distinct ones
    distinct[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(values)))
    return (counts.cumsum(-1) - (counts - 1) / 2)[..., distinct]


def confusion(predicted: np.ndarray, gold: np.ndarray, classes: int) -> np.ndarray:
    """(gold classes, predicted classes) counts."""
    return np.bincount(gold * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 in percent over the classes that occur or are predicted, of a confusion matrix, as in scikit-learn."""
    right, both = counts.diagonal(), counts.sum(0) + counts.sum(1)
    return float(np.mean(200 * right[both > 0] / both[both > 0]))


def multilabel_macro_f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Mean F1 in percent over all classes of (n, classes) booleans; 0 for one on neither side, as in scikit-learn.

    Example:
        >>> gold = np.eye(5, dtype=bool)[[0, 3, 4]]
        >>> multilabel_macro_f1(np.array([[False] * 5, gold[1], [False] * 5]), gold)
        20.0
    """
    both = predicted.sum(0) + gold.sum(0)
    return float(np.mean(200 * (predicted & gold).sum(0) / np.maximum(both, 1)))


def matthews(counts: np.ndarray) -> float:
    """Matthews' correlation in percent of a confusion matrix of any size; 0 where one side has a single class."""
    total, gold, predicted = float(counts.sum()), counts.sum(1).astype(float), counts.sum(0).astype(float)
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float(100 * (counts.trace() * total - predicted @ gold) / np.sqrt(spread)) if spread else 0.0


def top_accuracy(logits: np.ndarray, gold: Sequence[int] | np.ndarray, count: int) -> float:
    """Share in percent of n examples whose class is among the ``count`` highest logits; of equal logits the first
    classes count, as for ``argmax``."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return float(100 * (best == np.asarray(gold)[:, None]).any(1).mean())
