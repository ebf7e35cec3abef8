"""Losses over the documents of a query, against the formulas in plain Python."""

import math

import pytest
import torch

from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.losses.base import GROUP, Representation
from itrd_nlp.utils.errors import UserError

SHAPES = Shapes((), (), ("logits",))
GROUPS = [4, 0, 4, 2, 0, 4, 4, 7]  # 2 and 7 hold one document each
LABELS = [1, 0, 0, 1, 2, 3, 0, 0]


def representation(scores):
    return Representation({"logits": scores[:, None]}, (), None)


def value(name, student, teacher, groups=GROUPS, labels=LABELS, **options):
    loss = build_losses({name: options}, SHAPES)[name]
    batch = {GROUP: torch.tensor(groups), "labels": torch.tensor(labels, dtype=torch.float)[:, None]}
    (term,) = loss(representation(student), representation(teacher), batch).items()
    assert term[0] == name
    return term[1]


def drawn(n=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(2)]


def members(groups):
    return [[i for i, group in enumerate(groups) if group == each] for each in sorted({*groups})]


def margin_mse(s, t, groups, labels, pairs):
    means = []
    for group in members(groups):
        if pairs == "all":
            chosen = [(i, j) for i in group for j in group if i < j]
        else:
            chosen = [(i, j) for i in group for j in group if labels[i] > labels[j]]
        squares = [((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i, j in chosen]
        means.append(sum(squares) / len(squares) if squares else 0.0)
    return sum(means) / len(means)


def softmax(scores, temperature):
    exps = [math.exp(score / temperature) for score in scores]
    return [each / sum(exps) for each in exps]


def listwise(s, t, groups, temperature):
    divergences = []
    for group in members(groups):
        p, q = (softmax([x[i] for i in group], temperature) for x in (t, s))
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize("pairs", ["labels", "all"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_margin_mse_is_its_formula(pairs, weight):
    s, t = drawn()
    expected = weight * margin_mse(s.tolist(), t.tolist(), GROUPS, LABELS, pairs)
    assert value("margin_mse", s, t, pairs=pairs, weight=weight).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature,t_squared,weight", [(1.0, True, 1.0), (3.0, True, 0.5), (3.0, False, 2.0)])
def test_listwise_is_its_formula(temperature, t_squared, weight):
    s, t = drawn()
    scale = weight * (temperature**2 if t_squared else 1)
    expected = scale * listwise(s.tolist(), t.tolist(), GROUPS, temperature)
    found = value("listwise", s, t, temperature=temperature, t_squared=t_squared, weight=weight)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["margin_mse", "listwise"])
def test_a_constant_for_each_query_changes_nothing_and_equal_scores_cost_nothing(name):
    s, t = drawn()
    shift = torch.tensor([10.0 * group - 3 for group in GROUPS], dtype=torch.float64)
    assert value(name, s + shift, t).item() == pytest.approx(value(name, s, t).item(), rel=1e-9)
    assert value(name, t + shift, t).item() == pytest.approx(0, abs=1e-12)
    assert value(name, s, t) > 0.01


@pytest.mark.parametrize("name", ["margin_mse", "listwise"])
def test_the_order_in_a_batch_changes_nothing(name):
    s, t = drawn()
    order = [5, 3, 0, 7, 1, 6, 2, 4]
    groups, labels = [GROUPS[i] for i in order], [LABELS[i] for i in order]
    assert value(name, s[order], t[order], groups, labels).item() == pytest.approx(value(name, s, t).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["margin_mse", "listwise"])
def test_a_document_alone_gives_no_loss_and_no_gradient(name):
    s, t = drawn(3)
    s.requires_grad_()
    total = value(name, s, t, [0, 1, 2], [1, 0, 0])
    total.backward()
    assert total.item() == 0 and s.grad.tolist() == [0, 0, 0]
    s.grad = None
    value(name, *[s, drawn(3)[1]], [0, 1, 1], [1, 0, 1]).backward()
    assert s.grad[0] == 0 and s.grad[1] != 0  # beside a group of two
    assert s.grad.sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name,options", [("margin_mse", {}), ("margin_mse", {"pairs": "all"}), ("listwise", {})])
def test_gradients_are_those_of_differences(name, options):
    s, t = drawn()
    assert torch.autograd.gradcheck(lambda x: value(name, x, t, **options), s.requires_grad_())


def test_without_negatives_there_are_no_pairs_of_labels():
    s, t = drawn(4)
    assert value("margin_mse", s, t, [0] * 4, [1] * 4).item() == 0
    assert value("margin_mse", s, t, [0] * 4, [1] * 4, pairs="all") > 0


def test_batches_without_groups_labels_or_one_score_are_refused():
    losses = build_losses({"margin_mse": {}, "listwise": {}}, SHAPES)
    scores, batch = representation(torch.randn(4)), {GROUP: torch.zeros(4, dtype=torch.long)}
    for name in losses:
        with pytest.raises(UserError, match=f"{name} compares the documents of a query, and the data has no column"):
            losses[name](scores, scores, {})
    with pytest.raises(UserError, match="the training data carries none.*--losses.margin_mse.pairs all"):
        losses["margin_mse"].check_batch(batch)
    classes = Representation({"logits": torch.randn(4, 2)}, (), None)
    with pytest.raises(UserError, match=r"listwise compares one score a document, the head gives \(2,\)"):
        losses["listwise"](classes, classes, batch)
