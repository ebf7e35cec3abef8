"""Metrics against their definitions in plain Python."""

import numpy as np
import pytest

from itrd_nlp.experiments.intervals import resample
from itrd_nlp.tasks.metrics import (
    check_finite,
    f1_of_counts,
    pearson,
    spearman,
    top_accuracy,
)
from itrd_nlp.utils.errors import UserError


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
