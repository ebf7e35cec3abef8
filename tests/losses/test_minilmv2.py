"""MiniLMv2's relations against plain loops."""

import math

import pytest
import torch

from losses.made import batch, made, representation

LENGTHS, HEADS = (3, 5, 4, 6), 2


def divergence(student, teacher):
    """KL of the relations, token by token and head by head, for (tokens, d) vectors of all texts."""
    total = count = start = 0
    for length in LENGTHS:
        s, t = [x[start : start + length].tolist() for x in (student, teacher)]
        start += length
        for head in range(HEADS):
            for i in range(length):
                p, q = [relation(x, head, i) for x in (t, s)]
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                count += 1
    return total / count


def relation(vectors, head, i):
    width = len(vectors[0]) // HEADS
    part = slice(head * width, (head + 1) * width)
    scores = [sum(a * b for a, b in zip(vectors[i][part], v[part], strict=True)) / math.sqrt(width) for v in vectors]
    exps = [math.exp(score) for score in scores]
    return [e / sum(exps) for e in exps]


def test_the_terms_match_the_formula_averaged_over_layers():
    student, teacher = representation((4, 4), "minilmv2"), representation((6, 6), "minilmv2", seed=1)
    terms = made("minilmv2", weight=2.0)(student, teacher, batch())
    for kind, name in enumerate(("queries", "keys", "values")):
        layers = [divergence(student.attention[i], teacher.attention[i]) for i in (kind, kind + 3)]
        assert terms[name].item() == pytest.approx(2.0 * sum(layers) / 2, rel=1e-4)


def test_equal_vectors_cost_nothing_and_padding_does_not_count():
    student = representation((4, 4), "minilmv2")
    terms = made("minilmv2", student=(4, 4), teacher=(4, 4))(student, student, batch())
    assert torch.stack(list(terms.values())).sum().abs() < 1e-6
    one_by_one = []
    teacher = representation((6, 6), "minilmv2", seed=1)
    loss = made("minilmv2")
    start = 0
    for length in LENGTHS:
        parts = []
        for x in (student, teacher):
            rows = tuple(a[start : start + length] for a in x.attention)
            parts.append(x._replace(attention=rows, mask=torch.ones(1, length, dtype=torch.bool)))
        one_by_one.append(loss(*parts, batch(1))["values"] * length)
        start += length
    together = loss(student, teacher, batch())["values"]
    torch.testing.assert_close(together, torch.stack(one_by_one).sum() / sum(LENGTHS))
