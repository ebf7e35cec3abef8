"""TextBrewer's hidden_mse and mmd against plain loops."""

import pytest
import torch

from losses.made import batch, made, representation

LENGTHS = (3, 5, 4, 6)


def texts(x):
    """The token vectors of each text, as lists."""
    rows, start = x.tolist(), 0
    for length in LENGTHS:
        yield rows[start : start + length]
        start += length


def mse(student, teacher):
    pairs = [(a, b) for s, t in zip(student, teacher, strict=True) for a, b in zip(s, t, strict=True)]
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def mmd(student, teacher, scale=None):
    total = count = 0
    for s, t in zip(student, teacher, strict=True):
        for i in range(len(s)):
            for j in range(len(s)):
                gram_s = sum(a * b for a, b in zip(s[i], s[j], strict=True)) / (scale or len(s[i]))
                gram_t = sum(a * b for a, b in zip(t[i], t[j], strict=True)) / (scale or len(t[i]))
                total, count = total + (gram_s - gram_t) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("gram_scale", ["width", "length"])
def test_equal_widths_match_the_formula_summed_over_layers(gram_scale):
    loss = made("textbrewer", student=(6, 6), teacher=(6, 6), hidden_mse=2.0, mmd=0.5, gram_scale=gram_scale)
    scale = max(LENGTHS) if gram_scale == "length" else None
    student, teacher = representation((6, 6), "textbrewer"), representation((6, 6), "textbrewer", seed=1)
    terms = loss(student, teacher, batch())
    layers = list(zip(student.features, teacher.features, strict=True))
    assert not list(loss.parameters())
    expected = 2.0 * sum(mse(s.tolist(), t.tolist()) for s, t in layers)
    assert terms["hidden_mse"].item() == pytest.approx(expected, rel=1e-5)
    expected = 0.5 * sum(mmd(list(texts(s)), list(texts(t)), scale) for s, t in layers)
    assert terms["mmd"].item() == pytest.approx(expected, rel=1e-5)


def test_unequal_widths_are_projected_for_the_difference_alone():
    loss = made("textbrewer", gram_scale="width")
    student, teacher = representation((4, 4), "textbrewer"), representation((6, 6), "textbrewer", seed=1)
    terms = loss(student, teacher, batch())
    layers = list(zip(student.features, teacher.features, strict=True))
    expected = sum(mmd(list(texts(s)), list(texts(t))) for s, t in layers)
    assert terms["mmd"].item() == pytest.approx(expected, rel=1e-5)
    projected = [p(s) for p, s in zip(loss.projectors, student.features, strict=True)]
    expected = sum(mse(p.tolist(), t.tolist()) for p, t in zip(projected, teacher.features, strict=True))
    assert terms["hidden_mse"].item() == pytest.approx(expected, rel=1e-5)


def test_a_term_of_weight_zero_is_absent_and_trains_nothing_idle():
    student, teacher = representation((4, 4), "textbrewer"), representation((6, 6), "textbrewer", seed=1)
    only = made("textbrewer", hidden_mse=0)
    assert set(only(student, teacher, batch())) == {"mmd"} and not list(only.parameters())
    assert set(made("textbrewer", mmd=0)(student, teacher, batch())) == {"hidden_mse"}


def test_equal_states_cost_nothing():
    student = representation((6, 6), "textbrewer")
    terms = made("textbrewer", student=(6, 6), teacher=(6, 6))(student, student, batch())
    assert torch.stack(list(terms.values())).sum() == 0
