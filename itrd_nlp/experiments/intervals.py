"""How sure the difference of two models is: 95 % intervals over the seeds and the validation examples of records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from itrd_nlp.tasks.metrics import f1_of_counts, pearson, spearman
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError

RESAMPLES = 2000  # of the examples; an interval's width is then within 3 % of what more would give
CHUNK = 100  # resamples at once
# two-sided 95 % quantiles of Student's t by degrees of freedom, for which the next smaller ones given stand in
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 12: 2.18}
STUDENT_T |= {15: 2.13, 20: 2.09, 30: 2.04, 60: 2.00, 120: 1.98, 1000: 1.96}

# metrics that are no mean over examples: from what a record keeps of each example, and how often each counts
STATISTICS: Mapping[str, Callable[..., Any]] = {
    "f1": f1_of_counts,
    "micro_f1": f1_of_counts,
    "pearson": pearson,
    "spearman": spearman,
}


class Examples(NamedTuple):
    """What the records of several seeds keep of each validation example.

    Attributes:
        values: (seeds, n) a metric whose mean over the examples is reported; (seeds, n, k) where it is computed of all
            of them by ``STATISTICS``, from k numbers of each.
        metric: its name.
        data: of each seed, what names the examples and their order.
        complete: whether the examples tell how sure the metric is. Not where seeds have other examples, nor in
            records of earlier versions, which kept no more of F1 and correlations than shares of them.
    """

    values: np.ndarray
    metric: str
    data: list[Any]
    complete: bool = True

    def scores(self) -> np.ndarray:
        """(seeds,) the metric."""
        return self.values.mean(1) if self.values.ndim == 2 else np.array(list(map(self._statistic, self.values)))

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """(b,) the mean over the seeds of the metric, of examples that count as often as (b, n) weights say."""
        return np.mean([self._statistic(each, weights) for each in self.values], axis=0)

    @property
    def _statistic(self) -> Callable[..., Any]:
        return STATISTICS[self.metric]


def examples_of(records: Sequence[Record], role: str) -> Examples:
    """What records of several seeds keep of the last metric; raises :class:`UserError` where they keep nothing."""
    name = records[0].metric_names[-1]
    for record in records:
        if name not in record.examples.get(role, {}):
            raise UserError(f"{record.recipe}, seed {record.seed}: it lacks the {name} of each example; run it again")
    data = [record.digests.get("validation data") for record in records]
    each = [np.asarray(record.examples[role][name], np.float64) for record in records]
    shares = [values.ndim == 1 and _is_no_mean(record) for values, record in zip(each, records, strict=True)]
    if len({values.shape for values in each}) > 1 or any(shares):
        metrics = [[record.metrics[role][name]] for record in records]
        return Examples(np.array(metrics), name, data, complete=False)
    return Examples(np.array(each), name, data)


def _is_no_mean(record: Record) -> bool:
    """Whether the last metric is no mean over examples: all of ``STATISTICS`` but the F1 of questions."""
    name = record.metric_names[-1]
    return name in STATISTICS and (name != "f1" or "precision" in record.metric_names)


def compare_examples(some: Examples, others: Examples) -> tuple[float, tuple[float, float] | None]:
    """Mean difference of a metric over seeds, and its 95 % interval; None where the examples cannot be paired.

    Of a mean over examples it is :func:`paired_interval`; of any other metric :func:`bootstrap_interval`.
    """
    middle = float(some.scores().mean() - others.scores().mean())
    paired = some.values.shape == others.values.shape and some.data == others.data
    if not (paired and some.complete and others.complete):
        return middle, None
    if some.values.ndim == 2:
        return middle, paired_interval(some.values - others.values)
    return middle, bootstrap_interval(some, others)


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean difference: Student's t, on the variance of the seeds' means and that of the questions'.

    Degrees of freedom are Welch and Satterthwaite's: few seeds that disagree make it wide. With one seed it holds what
    other questions would change, not what another seed would.

    Args:
        differences: (seeds, questions).

    Example:
        >>> paired_interval(np.array([[0.0, 0.0], [4.0, 4.0]]))
        (-23.42, 27.42)
    """
    means = [differences.mean(1), differences.mean(0)]  # of each seed, of each question
    return _student(float(differences.mean()), [_of_mean(values) for values in means if len(values) > 1])


def bootstrap_interval(some: Examples, others: Examples, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the difference of a metric that is no mean over examples, such as F1 or a correlation.

    As :func:`paired_interval`, but the variance over examples is that of a paired bootstrap (Efron and Tibshirani 1993,
    chapter 6): examples are drawn with replacement, the same for both models and all seeds, and the metric is computed
    anew of each draw. The variance over seeds is that of their differences: of a few seeds, draws with replacement
    would vary too little. The draws are the same in every call.
    """
    draws = resample(some.values.shape[1], resamples, np.random.default_rng(0))
    found = np.concatenate([some.resampled(weights) - others.resampled(weights) for weights in draws])
    differences = some.scores() - others.scores()
    variances = [_of_mean(differences)] if len(differences) > 1 else []
    return _student(float(differences.mean()), [*variances, (float(found.var(ddof=1)), some.values.shape[1] - 1)])


def resample(examples: int, count: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of n examples is drawn in ``count`` draws of n with replacement, as arrays of (up to CHUNK, n)."""
    for begin in range(0, count, CHUNK):
        size = min(CHUNK, count - begin)
        yield draw.multinomial(examples, np.full(examples, 1 / examples), size).astype(np.float64)


def _of_mean(values: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of (n,) values, and its degrees of freedom."""
    return float(values.var(ddof=1)) / len(values), len(values) - 1


def _student(middle: float, variances: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Student's interval around ``middle``, of independent variances with their degrees of freedom."""
    total = sum(variance for variance, _ in variances)
    if not total:
        return middle, middle
    freedom = total**2 / sum(variance**2 / max(n, 1) for variance, n in variances)
    reach = STUDENT_T[max(n for n in STUDENT_T if n <= max(freedom, 1))] * total**0.5
    return round(float(middle - reach), 6), round(float(middle + reach), 6)
