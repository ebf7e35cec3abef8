"""Means of terms over the steps that were taken."""

import pytest
import torch

from itrd_nlp.training.step_means import StepMeans


def test_steps_of_several_batches_weigh_alike_and_skipped_ones_not_at_all():
    means = StepMeans()
    for step, taken in [([1.0, 3.0], True), ([float("nan")], False), ([8.0], True)]:
        for value in step:
            means.add({"kd": torch.tensor(value), "task": torch.tensor(1.0)})
        means.end_step(taken)
    assert (means.steps, means.skipped) == (2, 1)
    names, values = means.read()
    assert names == ["kd", "task"] and values.tolist() == [5.0, 1.0]  # (2 + 8) / 2
    assert (means.steps, means.skipped, means.run_steps, means.run_skipped) == (0, 0, 2, 1)
    assert means.run_loss().item() == pytest.approx(6.0)
