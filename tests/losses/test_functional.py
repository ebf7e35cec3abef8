"""The two losses against the formulas in plain Python, their invariants and their degenerate batches."""

import math

import numpy as np
import pytest
import torch

from itrd_nlp import correlation_loss, mutual_information_loss
from itrd_nlp.losses.functional import feature_correlations, gram_matrix

FORMS = ["log2", "raw"]


def correlation_by_hand(s, t, alpha):
    n, d = len(s), len(s[0])

    def column(x, i):
        values = [row[i] for row in x]
        mean = sum(values) / n
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        return [(v - mean) / deviation for v in values]

    total = 0.0
    for i in range(d):
        v = sum(a * b for a, b in zip(column(s, i), column(t, i), strict=True)) / n
        total += abs(v - 1) ** (2 * alpha)
    return math.log2(total)


def information_by_hand(s, t, form):
    n = len(s)

    def gram(x):
        norms = [math.sqrt(sum(v * v for v in row)) for row in x]
        cosine = [
            [sum(a * b for a, b in zip(x[i], x[j], strict=True)) / norms[i] / norms[j] for j in range(n)]
            for i in range(n)
        ]
        return by_trace(cosine)

    def by_trace(g):
        trace = sum(g[i][i] for i in range(n))
        return [[v / trace for v in row] for row in g]

    def frobenius(g):
        return sum(v * v for row in g for v in row)

    gs, gt = gram(s), gram(t)
    joint = by_trace([[a * b for a, b in zip(x, y, strict=True)] for x, y in zip(gs, gt, strict=True)])
    if form == "raw":
        return frobenius(gs) - frobenius(joint)
    return math.log2(frobenius(gs)) - math.log2(frobenius(joint))


@pytest.mark.parametrize("n,d", [(2, 1), (7, 5), (16, 3)])
@pytest.mark.parametrize("alpha", [1.01, 1.5, 3.0])
def test_correlation_matches_the_formula(n, d, alpha):
    s, t = torch.randn(2, n, d, dtype=torch.float64)
    expected = correlation_by_hand(s.tolist(), t.tolist(), alpha)
    assert correlation_loss(s, t, alpha).item() == pytest.approx(expected, rel=1e-9)
    assert correlation_loss(s.float(), t.float(), alpha).item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("widths", [(5, 5), (3, 8)])
def test_information_matches_the_formula(form, widths):
    s, t = torch.randn(9, widths[0], dtype=torch.float64), torch.randn(9, widths[1], dtype=torch.float64)
    expected = information_by_hand(s.tolist(), t.tolist(), form)
    assert mutual_information_loss(s, t, form).item() == pytest.approx(expected, rel=1e-9)


def test_correlations_and_cosines_are_those_of_numpy():
    s, t = torch.randn(2, 9, 5, dtype=torch.float64)
    s[:, 2] = 4
    with np.errstate(invalid="ignore"):  # a constant feature
        expected = [np.corrcoef(s[:, i], t[:, i])[0, 1] * 8 / 9 for i in range(5)]
    np.testing.assert_allclose(feature_correlations(s, t), np.nan_to_num(expected), atol=1e-12)
    lengths = np.linalg.norm(t.numpy(), axis=1)
    np.testing.assert_allclose(gram_matrix(t), (t @ t.T).numpy() / np.outer(lengths, lengths), atol=1e-12)


@pytest.mark.parametrize("alpha", [1.01, 2.0])
@pytest.mark.parametrize("n,d", [(8, 4), (64, 128)])
def test_identical_features_reach_the_floor(n, d, alpha):
    x = torch.randn(n, d, dtype=torch.float64)
    floor = math.log2(d) - 2 * alpha * math.log2(n)
    assert correlation_loss(x, x, alpha).item() == pytest.approx(floor, abs=1e-9)
    assert correlation_loss(torch.randn_like(x), x, alpha) > floor


def test_correlation_ignores_affine_maps_of_each_feature_and_the_order_of_samples():
    s, t = torch.randn(2, 12, 6, dtype=torch.float64)
    order = torch.randperm(12)
    expected = correlation_loss(s, t)
    torch.testing.assert_close(correlation_loss(s * torch.rand(6) * 5 + 3, t - 7), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(correlation_loss(s[order], t[order]), expected)
    assert correlation_loss(-t, t) > correlation_loss(s, t) > correlation_loss(t, t)


@pytest.mark.parametrize("form", FORMS)
def test_information_ignores_rotations_row_scales_and_order(form):
    s, t = torch.randn(2, 10, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    order = torch.randperm(10)
    expected = mutual_information_loss(s, t, form)
    torch.testing.assert_close(mutual_information_loss(s @ rotation, t @ rotation, form), expected)
    torch.testing.assert_close(mutual_information_loss(s * torch.rand(10, 1).add(0.1), t, form), expected)
    torch.testing.assert_close(mutual_information_loss(s[order], t[order], form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_information_orders_collapse_above_match_above_orthogonal_rows(form):
    t = torch.randn(32, 64, dtype=torch.float64).relu()
    collapsed, orthogonal = torch.ones_like(t), torch.eye(64, dtype=torch.float64)[:32]
    values = [mutual_information_loss(s, t, form).item() for s in (collapsed, t, orthogonal)]
    assert values[0] > values[1] > values[2]
    assert values[2] == pytest.approx(0.0, abs=1e-12)
    assert values[0] <= (5.0 if form == "log2" else 1.0)  # log2(32), and 1


@pytest.mark.parametrize("loss", [correlation_loss, mutual_information_loss])
def test_gradcheck(loss):
    s, t = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (s, t))


def degenerate(kind, n=6, d=5):
    x = torch.randn(n, d)
    if kind == "constant feature":
        x[:, 2] = 0.1
    elif kind == "constant everywhere":
        x[:] = 0.3
    elif kind == "zero row":
        x[1] = 0
    elif kind == "all zero":
        x[:] = 0
    elif kind == "equal rows":
        x[:] = x[0].clone()
    elif kind == "huge":
        x *= 1e18
    elif kind == "tiny":
        x *= 1e-18
    elif kind == "mixed scales":
        x *= torch.tensor([1e18, 1e-18, 1.0, 1e9, 1e-9])
    return x


KINDS = [
    "constant feature",
    "constant everywhere",
    "zero row",
    "all zero",
    "equal rows",
    "huge",
    "tiny",
    "mixed scales",
]


@pytest.mark.parametrize("loss", [correlation_loss, mutual_information_loss])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 6])
def test_degenerate_batches_stay_finite(loss, kind, n):
    for which in ("student", "teacher", "both", "identical"):
        s = degenerate(kind if which != "teacher" else "none", n).requires_grad_()
        t = s.detach().clone() if which == "identical" else degenerate(kind if which != "student" else "none", n)
        value = loss(s, t)
        value.backward()
        assert value.isfinite() and s.grad.isfinite().all(), which
        assert value.abs() < 50


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_scale_does_not_change_the_value(scale):
    s, t = torch.randn(2, 16, 8)
    torch.testing.assert_close(correlation_loss(s * scale, t), correlation_loss(s, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mutual_information_loss(s * scale, t), mutual_information_loss(s, t), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("loss", [correlation_loss, mutual_information_loss])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(loss, dtype):
    s, t = torch.randn(2, 64, 16, dtype=dtype)
    s.requires_grad_()
    value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32 and s.grad.dtype == dtype and s.grad.isfinite().all()
    torch.testing.assert_close(value, loss(s.detach().float(), t.float()))


@pytest.mark.parametrize("loss", [correlation_loss, mutual_information_loss])
def test_layers_at_once_are_the_layers_one_by_one(loss):
    s, t = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    s[1, :, 2] = 5.0  # constant features and zero rows stay in their own layer
    t[2, 3] = 0.0
    torch.testing.assert_close(loss(s, t), torch.stack([loss(a, b) for a, b in zip(s, t, strict=True)]))


def test_inputs_are_left_alone():
    s, t = torch.randn(2, 6, 4)
    before = s.clone(), t.clone()
    correlation_loss(s, t), mutual_information_loss(s, t)
    assert torch.equal(s, before[0]) and torch.equal(t, before[1])


@pytest.mark.parametrize("loss", [correlation_loss, mutual_information_loss])
@pytest.mark.parametrize(
    "s,t,words",
    [
        ((1, 4), (1, 4), "n >= 2"),
        ((4, 3), (5, 3), "same n"),
        ((2, 2, 3, 4), (2, 2, 3, 4), "pool"),
        ((3, 4), (1, 3, 4), "pool"),
    ],
)
def test_wrong_shapes_are_refused_in_words(loss, s, t, words):
    with pytest.raises(ValueError, match=words):
        loss(torch.randn(s), torch.randn(t))


def test_wrong_options_are_refused_in_words():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="project the student"):
        correlation_loss(x, torch.randn(4, 5))
    with pytest.raises(ValueError, match="alpha is 0"):
        correlation_loss(x, x, alpha=0)
    with pytest.raises(ValueError, match='"log2".*"raw"'):
        mutual_information_loss(x, x, form="log")
