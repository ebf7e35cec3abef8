"""WCoRD: 1-Lipschitz heads, and the cost of transport against all permutations."""

import itertools

import pytest
import torch

from itrd_nlp.losses.wcord import transport_cost
from losses.made import batch, made, pair


def test_the_cost_is_that_of_the_best_assignment():
    cost = torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = min(sum(cost[i, j].item() for i, j in enumerate(p)) for p in itertools.permutations(range(5))) / 5
    assert transport_cost(cost, epsilon=0.002, iterations=3000).item() == pytest.approx(best, abs=1e-3)
    assert transport_cost(cost, epsilon=1e3, iterations=10).item() == pytest.approx(cost.mean().item(), rel=1e-3)


def test_its_gradient_is_the_plan():
    cost = torch.rand(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    transport_cost(cost, epsilon=0.1, iterations=500).backward()
    for axis in (0, 1):
        torch.testing.assert_close(cost.grad.sum(axis), torch.full((4,), 0.25, dtype=torch.float64))


def test_heads_have_spectral_norm_one():
    loss = made("wcord")
    for _ in range(60):
        loss(*pair("wcord"), batch())
    for head in [head for heads in loss.heads for head in heads]:
        assert torch.linalg.matrix_norm(head.weight, 2).item() == pytest.approx(1, abs=1e-2)


def test_both_terms_are_weighted():
    terms = made("wcord")(*pair("wcord"), batch())
    more = made("wcord", weight=1.6, local_weight=0.15)(*pair("wcord"), batch())
    torch.testing.assert_close(more["local"], 3 * terms["local"])
    torch.testing.assert_close(more["global"], 2 * terms["global"])
    assert set(terms) == {"global", "local"}


def test_the_local_term_is_the_cost_of_the_best_assignment_by_cosine():
    loss, (student, teacher) = made("wcord", local_weight=1.0, epsilon=0.002, iterations=3000).eval(), pair("wcord")
    costs = []
    for s, t in loss.embed(student, teacher):
        cosine = torch.nn.functional.cosine_similarity(s[:, None], t[None], dim=-1)
        costs.append(
            min(sum(1 - cosine[i, j].item() for i, j in enumerate(p)) for p in itertools.permutations(range(4)))
        )
    assert loss(student, teacher, batch())["local"].item() == pytest.approx(sum(costs) / 8, abs=5e-3)
