"""Knowledge distillation against the formula in plain Python."""

import math

import pytest
import torch

from itrd_nlp.distillation.feature_extractor import read_logits
from itrd_nlp.losses import Shapes
from itrd_nlp.losses.base import Representation
from itrd_nlp.losses.kd import KDLoss

SHAPES = Shapes((), (), ("start_logits", "end_logits"))


def softmax(values, temperature):
    exps = [math.exp(v / temperature) for v in values]
    return [e / sum(exps) for e in exps]


def divergence(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        ps, pt = softmax(s, temperature), softmax(t, temperature)
        total += sum(q * math.log(q / p) for p, q in zip(ps, pt, strict=True))
    return total / len(student)


def representation(seed, n=5, classes=7):
    draw = torch.Generator().manual_seed(seed)
    logits = {name: torch.randn(n, classes, generator=draw) for name in SHAPES.heads}
    return Representation(logits, (), None)


@pytest.mark.parametrize("temperature,t_squared,weight", [(1.0, True, 1.0), (8.0, True, 0.5), (4.0, False, 2.0)])
def test_matches_the_formula(temperature, t_squared, weight):
    loss = KDLoss(SHAPES, temperature=temperature, t_squared=t_squared, weight=weight)
    s, t = representation(0), representation(1)
    heads = [divergence(s.logits[h].tolist(), t.logits[h].tolist(), temperature) for h in SHAPES.heads]
    expected = weight * (temperature**2 if t_squared else 1) * sum(heads) / 2
    assert loss(s, t, {})["kd"].item() == pytest.approx(expected, rel=1e-4)


def test_equal_logits_cost_nothing():
    assert KDLoss(SHAPES)(representation(0), representation(0), {})["kd"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"independent": True}, {"scores": True}])
def test_a_batch_without_a_sample_costs_nothing(changes):
    """As of sentences without a word that both models read."""
    empty = Representation({"logits": torch.empty(0, 5, requires_grad=True)}, (), None)
    found = KDLoss(Shapes((), (), ("logits",), **changes))(empty, empty, {})["kd"]
    found.backward()
    assert found.item() == 0


def test_several_scores_are_not_softened():
    """Of a regression with several targets, which a softmax would take for classes."""
    s, t = [Representation({"logits": x}, (), None) for x in torch.randn(2, 3, 5)]
    expected = (s.logits["logits"] - t.logits["logits"]).square().mean()
    found = KDLoss(Shapes((), (), ("logits",), scores=True), weight=2.0)(s, t, {})["kd"]
    torch.testing.assert_close(found, 2 * expected)


def test_padding_does_not_count():
    s, t = torch.randn(2, 3, 6)
    mask = torch.tensor([[1] * 4 + [0] * 2] * 3)
    heads = ("start_logits",)

    def kd(length):
        batch = {"attention_mask": mask[:, :length]}
        logits = [read_logits({"start_logits": x[:, :length]}, heads, batch) for x in (s, t)]
        student, teacher = [Representation(x, (), mask[:, :length].bool()) for x in logits]
        return KDLoss(Shapes((), (), heads))(student, teacher, {})["kd"]

    torch.testing.assert_close(kd(6), kd(4))
