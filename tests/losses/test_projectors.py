"""The projection that measures a student."""

import numpy as np
import pytest
import torch

from itrd_nlp import correlation_loss
from itrd_nlp.losses.projectors import fit_projector


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(60, 4, generator=draw) + 3
    noise = torch.randn(60, 6, generator=draw)
    return student, student @ torch.randn(4, 6, generator=draw) + 0.5 * noise - 7


def test_it_is_least_squares_as_numpy_solves_it(pair):
    student, teacher = pair
    design = np.hstack([student.numpy(), np.ones((60, 1))])
    expected = design @ np.linalg.lstsq(design, teacher.numpy(), rcond=None)[0]
    np.testing.assert_allclose(fit_projector(student, teacher)(student).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_no_other_linear_map_has_a_lower_correlation_loss_on_the_same_samples(pair):
    student, teacher = pair
    linear = fit_projector(student, teacher).requires_grad_(True)
    lowest = correlation_loss(linear(student), teacher)
    assert torch.autograd.grad(lowest, linear.weight)[0].abs().max() < 1e-5
    for seed in range(20):
        step = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        assert correlation_loss(student @ (linear.weight + 0.05 * step).mT, teacher) > lowest


def test_features_that_repeat_each_other_have_a_solution(pair):
    student, teacher = pair
    twice = torch.cat([student, student, torch.ones(60, 1)], 1)
    torch.testing.assert_close(fit_projector(twice, teacher)(twice), fit_projector(student, teacher)(student))


@pytest.mark.parametrize("rows", [(60, 59), (5, 5)])
def test_too_few_or_other_samples_are_refused(pair, rows):
    with pytest.raises(ValueError, match="expected the same n"):
        fit_projector(pair[0][: rows[0]], pair[1][: rows[1]])
