"""Temperature scaling, and how well probabilities fit what happens: ECE, Brier score, accuracy at coverage."""

from typing import Any

import numpy as np

BINS = 15  # of equal width, as in Guo et al. (2017)
COVERAGES = (100, 90, 80, 50)  # percent of the examples, the most confident ones
LIMIT = 100.0  # temperatures lie between its inverse and it
CLOSE = 1.0001  # times the limit: at it
SEED = 0  # draws the halves
VERSION = 2  # of what calibrate() computes for the same outputs, which is kept on disk: raise it with each change


def calibrate(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any] | None:
    """Fit a temperature (Guo et al. 2017), and measure probabilities without and with one.

    Nothing is measured on examples that its temperature was fitted on: two random halves take turns. The temperature
    for use is fitted on all examples.

    Args:
        logits: (n, classes), whose softmax are probabilities; or (n,), whose sigmoid are those of a label of 1.
        labels: (n,) classes, or 0 and 1.
        groups: (n,) of examples that stay in the same half, such as the documents of a query; None: each by itself.

    Returns:
        ``temperature``; ``groups``, how many; ``before`` and ``after``, see :func:`reliability`. None for less than two
        groups.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    unique = np.unique(groups)
    if len(unique) < 2:
        return None
    logits = np.clip(np.asarray(logits, np.float64), -1e4, 1e4)  # the logarithm of 0 is not a number to compute with
    first = np.isin(groups, np.random.default_rng(SEED).permutation(unique)[: len(unique) // 2])
    after = np.empty_like(logits)
    for half in (first, ~first):
        after[half] = probabilities(logits[half], fit_temperature(logits[~half], labels[~half]))
    return {
        "temperature": fit_temperature(logits, labels),
        "groups": len(unique),
        "before": reliability(probabilities(logits), labels),
        "after": reliability(after, labels),
    }


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax of (n, classes) logits over a temperature, or sigmoid of (n,); of the same shape.

    Example:
        >>> probabilities(np.array([[0.0, np.log(9)]]), temperature=2.0)
        array([[0.25, 0.75]])
    """
    columns = _columns(logits) / temperature
    powers = np.exp(columns - columns.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    return shares[:, 1] if logits.ndim == 1 else shares


def _columns(logits: np.ndarray) -> np.ndarray:
    """(n, classes) logits; of (n,) those of two classes, as the sigmoid of z is the softmax of (0, z)."""
    return np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least cross-entropy.

    The cross-entropy is convex in b = 1 / temperature, with the slope mean(E[z] - z_y), where z are the logits, y is
    the label, and E is over the classes with the probabilities softmax(b z). Halving the range of log b finds where it
    is zero.

    Args:
        logits, labels: as of :func:`calibrate`.

    Returns:
        Up to 100, where logits mislead; 1 where the best is 0.01 or less, as where all labels are the likeliest class,
        or where logits say nothing: then the examples do not tell.
    """
    columns = _columns(logits)
    margins = columns - np.take_along_axis(columns, labels.astype(int)[:, None], axis=1)  # z - z_y
    low, high = 1 / LIMIT, LIMIT  # of the temperature
    while high > low * (1 + 1e-6):
        temperature = np.sqrt(low * high)
        slope = (probabilities(margins, temperature) * margins).sum(1).mean()
        low, high = (temperature, high) if slope > 0 else (low, temperature)
    temperature = float(np.sqrt(low * high))
    return temperature if temperature > CLOSE / LIMIT else 1.0


def reliability(shares: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well probabilities fit the labels.

    Args:
        shares: (n, classes), or (n,) of a label of 1, as of :func:`probabilities`.
        labels: (n,).

    Returns:
        ``ece``, the expected calibration error in percent: over bins of the confidence, the mean distance of confidence
        from accuracy, weighted by the examples in each; the confidence is the highest probability, or of (n,) that of
        a label of 1. ``brier``, the mean squared distance of probabilities from labels; of (n, classes) summed over the
        classes (Brier 1950), from 0 to 2, else from 0 to 1. ``accuracy@c``, the accuracy in percent among the c percent
        of the examples with the most confident predictions.
    """
    if shares.ndim == 1:
        confidence, hits = shares, labels.astype(float)
        brier = np.mean((shares - labels) ** 2)
        certain, right = np.maximum(shares, 1 - shares), (shares > 0.5) == (labels > 0.5)
    else:
        confidence, right = shares.max(1), shares.argmax(1) == labels
        hits, certain = right.astype(float), confidence
        of_label = np.take_along_axis(shares, labels.astype(int)[:, None], axis=1)[:, 0]
        brier = np.mean((shares**2).sum(1) - 2 * of_label + 1)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - hits, minlength=BINS)
    order = np.argsort(-certain, kind="stable")
    covered = {c: right[order[: -(-len(order) * c // 100)]].mean() for c in COVERAGES}
    scores = {"ece": float(100 * np.abs(gaps).sum() / len(labels)), "brier": float(brier)}
    return scores | {f"accuracy@{c}": float(100 * share) for c, share in covered.items()}
