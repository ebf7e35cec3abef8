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


def test_means_of_bf16_terms_are_those_of_fp32():
    means = StepMeans()
    for _ in range(400):
        means.add({"kd": torch.tensor(3.4, dtype=torch.bfloat16)})
        means.end_step(True)
    assert means.read()[1].item() == pytest.approx(3.40625)  # in bf16 the sum stops growing at 512
