"""Metrics of classes, tags and scores, each as the mean of what the examples add to it; numpy alone."""

from collections.abc import Sequence

import numpy as np


def shares_of_f1(right: Sequence[int], predicted: Sequence[int], gold: Sequence[int]) -> np.ndarray:
    """What each example adds to the micro-averaged F1 in percent, their mean; 100 each where there is nothing to find.

    Args:
        right, predicted, gold: (n,) how many an example has that are right, predicted, and in the gold labels.

    Example:
        >>> shares_of_f1([1, 0], [1, 1], [1, 1]).tolist()
        [100.0, 0.0]
    """
    both = np.sum(predicted) + np.sum(gold)
    return 200 * np.asarray(right) * len(right) / both if both else np.full(len(right), 100.0)


def shares_of_pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What each example adds to Pearson's correlation of two (n,) in percent, their mean; 0 each where one is constant.

    Example:
        >>> float(shares_of_pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])).mean().round(4))
        98.1981
    """
    x, y = [np.asarray(values, np.float64) - np.mean(values, dtype=np.float64) for values in (x, y)]
    scale = np.sqrt(np.mean(x**2) * np.mean(y**2))
    return 100 * x * y / scale if scale else np.zeros(len(x))


def shares_of_spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same of Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs.

    Example:
        >>> float(shares_of_spearman(np.array([1.0, 5.0, 7.0]), np.array([0.0, 1.0, 9.0])).mean().round(6))
        100.0
    """
    return shares_of_pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def confusion(predicted: np.ndarray, gold: np.ndarray, classes: int) -> np.ndarray:
    """(gold classes, predicted classes) counts."""
    return np.bincount(gold * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 in percent over the classes that occur or are predicted, of a confusion matrix."""
    both = counts.sum(0) + counts.sum(1)
    return float(np.mean(200 * counts.diagonal()[both > 0] / both[both > 0]))


def matthews(counts: np.ndarray) -> float:
    """Matthews' correlation in percent of a confusion matrix of any size; 0 where one side has a single class."""
    total, gold, predicted = counts.sum(), counts.sum(1), counts.sum(0)
    scale = np.sqrt(float(total**2 - (predicted**2).sum()) * float(total**2 - (gold**2).sum()))
    return float(100 * (counts.trace() * total - predicted @ gold) / scale) if scale else 0.0
