"""Metrics against their definitions in plain Python."""

import math
import random

import numpy as np
import pytest

from itrd_nlp.experiments.intervals import resample
from itrd_nlp.tasks.metrics import (
    check_finite,
    confusion,
    f1_of_counts,
    macro_f1,
    matthews,
    multilabel_macro_f1,
    pearson,
    spearman,
    top_accuracy,
)
from itrd_nlp.utils.errors import UserError


def by_definition(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return 100 * top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@pytest.mark.parametrize("seed", range(5))
def test_correlations_with_ties(seed):
    draw = random.Random(seed)
    x, y = [[float(draw.randint(0, 8)) for _ in range(30)] for _ in range(2)]
    pairs = np.column_stack([x, y])
    assert spearman(pairs) == pytest.approx(by_definition(ranks(x), ranks(y)))
    assert pearson(pairs) == pytest.approx(by_definition(x, y))


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize("constant", [0.1, 0.0, 1e300])
def test_a_constant_side_has_no_correlation(metric, constant):
    pairs = np.column_stack([np.full(10, constant), np.arange(10.0)])
    assert metric(pairs) == metric(pairs[:, ::-1]) == 0.0
    assert metric(pairs[:1]) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlations_of_numbers_of_any_size(scale):
    pairs = np.column_stack([np.arange(5.0) * scale, np.arange(5.0)])
    assert pearson(pairs) == spearman(pairs) == pytest.approx(100, abs=1e-12)


@pytest.mark.parametrize("metric", [pearson, spearman, f1_of_counts])
def test_a_weighted_example_counts_as_often_as_its_copies(metric):
    draw = np.random.default_rng(0)
    values = draw.integers(0, 6, (20, 3 if metric is f1_of_counts else 2)).astype(float)
    for weights in resample(20, 30, draw):
        copies = [metric(values.repeat(each.astype(int), 0)) for each in weights]
        np.testing.assert_allclose(metric(values, weights), copies, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_classes(seed):
    draw = random.Random(seed)
    gold, said = [[draw.randint(0, 3) for _ in range(40)] for _ in range(2)]
    said[0] = gold[0] = 1
    counts = confusion(np.array(said), np.array(gold), 5)  # one class never occurs
    f1s = []
    for c in range(4):
        right = sum(a == b == c for a, b in zip(said, gold, strict=True))
        f1s.append(200 * right / (said.count(c) + gold.count(c)))
    assert macro_f1(counts) == pytest.approx(sum(f1s) / 4)

    # Matthews' correlation is Pearson's of the indicators of all classes, centred class by class
    def covariance(a, b):
        columns = [([x == c for x in a], [x == c for x in b]) for c in range(5)]
        return sum(sum(p * q for p, q in zip(u, v, strict=True)) / 40 - sum(u) * sum(v) / 1600 for u, v in columns)

    expected = covariance(said, gold) / math.sqrt(covariance(said, said) * covariance(gold, gold))
    assert matthews(counts) == pytest.approx(100 * expected)
    assert matthews(confusion(np.zeros(4, int), np.array([0, 0, 1, 1]), 2)) == 0


def test_f1_of_counts():
    precision, recall = 3 / 5, 3 / 5
    expected = 200 * precision * recall / (precision + recall)
    assert f1_of_counts([[1, 2, 1], [0, 1, 0], [2, 2, 4]]) == pytest.approx(expected)
    assert f1_of_counts([[0, 0, 0], [0, 0, 0]]) == 0.0
    assert f1_of_counts([[1, 1, 1]] * 7) == 100.0


def test_multilabel_macro_f1_counts_classes_on_neither_side_as_0():
    gold = np.eye(5, dtype=bool)[[0, 3, 4]]
    found = gold & (np.arange(5) == 3)  # the second row alone
    assert multilabel_macro_f1(found, gold) == 20.0
    assert multilabel_macro_f1(gold, gold) == 60.0


def test_of_equal_logits_the_first_classes_are_the_highest():
    logits = np.zeros((12, 12))
    assert top_accuracy(logits, np.arange(12), 5) == pytest.approx(100 * 5 / 12)
    assert top_accuracy(logits, logits.argmax(1), 1) == 100.0
    assert top_accuracy(np.eye(3), [0, 0, 0], 5) == 100.0  # fewer classes than are asked for


def test_outputs_that_are_no_numbers_are_refused():
    outputs = np.zeros((4, 3, 2), np.float32)
    outputs[0] = -np.inf  # a class that is masked
    assert check_finite(outputs) is outputs
    outputs[1, 2, 0] = outputs[3] = np.nan
    with pytest.raises(UserError, match="NaN for 2 of 4 validation examples"):
        check_finite(outputs)
