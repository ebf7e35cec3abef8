"""How sure the difference of two models is: 95 % intervals over the seeds and the validation examples of records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from itrd_nlp.tasks.metrics import f1_of_counts, pearson, spearman
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError

RESAMPLES = 2000  # of the examples; more of them would change an interval's width by less than 3 %
DIGESTS = ("validation examples", "validation data")  # of a record; earlier versions had only that of the tokens
CHUNK = 100  # resamples that are scored at once
# two-sided 95 % quantiles of Student's t by degrees of freedom; between two entries, the smaller one counts
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 12: 2.18}
STUDENT_T |= {15: 2.13, 20: 2.09, 30: 2.04, 60: 2.00, 120: 1.98, 1000: 1.96}

# metrics that are not a mean over examples: functions of what a record keeps of each example, and of its weight
STATISTICS: Mapping[str, Callable[..., Any]] = {
    "f1": f1_of_counts,
    "micro_f1": f1_of_counts,
    "pearson": pearson,
    "spearman": spearman,
}


class Examples(NamedTuple):
    """What the records of several seeds keep of each validation example.

    Attributes:
        values: (seeds, n) scores, of which the metric is the mean; or (seeds, n, k) for a metric of ``STATISTICS``,
            which is computed from k numbers per example.
        metric: its name.
        data: for each seed, digests of the examples and their order; seeds are paired that share one.
        complete: whether the metric follows from the examples. False where seeds were scored on other examples, and
            for records of earlier versions, which kept of F1 and correlations only a share per example.
    """

    values: np.ndarray
    metric: str
    data: list[frozenset[str]]
    complete: bool = True

    def scores(self) -> np.ndarray:
        """(seeds,) the metric."""
        if self.values.ndim == 2:
            return self.values.mean(1)
        return np.array([STATISTICS[self.metric](values) for values in self.values])

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """(b,) the mean over seeds of the metric, with each example counted as often as (b, n) ``weights`` say."""
        if self.values.ndim == 2:
            return weights @ self.values.mean(0) / weights.sum(1)
        return np.mean([STATISTICS[self.metric](values, weights) for values in self.values], axis=0)


def examples_of(records: Sequence[Record], role: str) -> Examples:
    """The examples' part in the last metric, of several seeds; raises :class:`UserError` where a record has none."""
    metric = records[0].metric_names[-1]
    for record in records:
        if metric not in record.examples.get(role, {}):
            raise UserError(f"{record.recipe}, seed {record.seed}: it lacks the {metric} of each example; run it again")
    data = [frozenset(record.digests[name] for name in DIGESTS if name in record.digests) for record in records]
    values = [np.asarray(record.examples[role][metric], np.float64) for record in records]
    # the F1 of question answering, alone, is a mean over examples
    is_mean = metric not in STATISTICS or (metric == "f1" and "precision" not in records[0].metric_names)
    only_shares = not is_mean and any(value.ndim == 1 for value in values)
    if only_shares or len({value.shape for value in values}) > 1:
        scores = [[record.metrics[role][metric]] for record in records]
        return Examples(np.array(scores), metric, data, complete=False)
    return Examples(np.array(values), metric, data)


def compare_examples(
    first: Examples, second: Examples, groups: Sequence[int] | None = None
) -> tuple[float, tuple[float, float] | None]:
    """Mean difference of a metric over seeds, and its 95 % interval; None where examples are unpaired or too few, or
    differ all alike.

    Args:
        groups: for each example the index of what it belongs to, such as the article that a question is about; groups
            are drawn then, as examples of a group are alike.
    """
    difference = float(first.scores().mean() - second.scores().mean())
    same_data = all(one & other for one, other in zip(first.data, second.data, strict=False))
    paired = first.values.shape == second.values.shape and same_data
    drawn = first.values.shape[1] if groups is None else len({*groups})
    if not (paired and first.complete and second.complete) or drawn < 2:
        return difference, None
    if first.values.ndim == 2 and groups is None:
        return difference, paired_interval(first.values - second.values)
    return difference, bootstrap_interval(first, second, groups)


def paired_interval(differences: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of a mean difference, by Student's t; the variances over seeds and over examples add up.

    Degrees of freedom are Welch and Satterthwaite's: few seeds that disagree make it wide. With one seed it covers what
    other examples would change, not what another seed would.

    Args:
        differences: (seeds, examples).

    Example:
        >>> paired_interval(np.array([[0.0, 0.0], [4.0, 4.0]]))
        (-23.42, 27.42)
    """
    means = [differences.mean(1), differences.mean(0)]  # of each seed, of each example
    return _student(float(differences.mean()), [_variance_of_mean(values) for values in means if len(values) > 1])


def bootstrap_interval(
    first: Examples, second: Examples, groups: Sequence[int] | None = None, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95 % interval of the difference of a metric that is not a mean over examples, such as F1 or a correlation.

    Like :func:`paired_interval`, but the variance over examples is that of a paired bootstrap (Efron and Tibshirani
    1993, chapter 6): examples are drawn with replacement, the same for both models and all seeds, and the metric is
    computed anew for each draw. Seeds are not resampled: draws from a few seeds would vary too little. Every call draws
    the same examples.

    Args:
        groups: for each example the index of its group; whole groups are drawn then.
    """
    group_of = np.arange(first.values.shape[1]) if groups is None else np.asarray(groups)
    count = int(group_of.max()) + 1
    draws = resample(count, resamples, np.random.default_rng(0))
    resampled = np.concatenate(
        [first.resampled(weights[:, group_of]) - second.resampled(weights[:, group_of]) for weights in draws]
    )
    variance = float(resampled.var(ddof=1)) * count / (count - 1)  # a bootstrap's is too small by (k - 1) / k
    variances = [(variance, count - 1)]
    differences = first.scores() - second.scores()
    if len(differences) > 1:
        variances.append(_variance_of_mean(differences))
    return _student(float(differences.mean()), variances)


def resample(examples: int, count: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of n examples is drawn in ``count`` draws of n with replacement, as (up to CHUNK, n) arrays."""
    for begin in range(0, count, CHUNK):
        size = min(CHUNK, count - begin)
        yield draw.multinomial(examples, np.full(examples, 1 / examples), size).astype(np.float64)


def _variance_of_mean(values: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of (n,) values, and its degrees of freedom."""
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _student(mean: float, variances: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """Student's interval around ``mean``, for independent variances with their degrees of freedom.

    None without any variance: equal differences of a few examples do not say what others would change.
    """
    total = sum(variance for variance, _ in variances)
    if not total:
        return None
    freedom = total**2 / sum(variance**2 / max(n, 1) for variance, n in variances)
    reach = STUDENT_T[max(n for n in STUDENT_T if n <= max(freedom, 1))] * total**0.5
    return round(float(mean - reach), 6), round(float(mean + reach), 6)
