"""SRD, VkD and the cosine term against plain loops."""

import math

import pytest
import torch

from losses.made import batch, made, pair


def columns(x):
    return [list(c) for c in zip(*x.tolist(), strict=True)]


def test_srd_matches_the_formula():
    loss = made("srd", weight=0.5, exponent=3.0)
    student, teacher = pair("srd")
    layers = []
    for p, s, t in zip(loss.projectors, student.features, teacher.features, strict=True):
        total = 0.0
        for a, b in zip(columns(p(s)), columns(t), strict=True):
            standard = []
            for c in (a, b):
                mean = sum(c) / len(c)
                variance = sum((v - mean) ** 2 for v in c) / len(c)
                standard.append([(v - mean) / math.sqrt(variance + 1e-4) for v in c])
            total += sum(abs(x - y) ** 3.0 for x, y in zip(*standard, strict=True))
        layers.append(math.log(total))
    assert loss(student, teacher, batch())["srd"].item() == pytest.approx(0.5 * sum(layers) / 2, rel=1e-4)


def test_vkd_matches_the_formula_and_stays_orthogonal_while_it_trains():
    loss = made("vkd", weight=2.0)
    student, teacher = pair("vkd")
    layers = []
    for p, s, t in zip(loss.projectors, student.features, teacher.features, strict=True):
        values = []
        for a, b in zip(p(s).tolist(), t.tolist(), strict=True):
            mean = sum(b) / len(b)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in b) / len(b) + 1e-5)
            for x, y in zip(a, b, strict=True):
                d = abs(x - (y - mean) / deviation)
                values.append(0.5 * d * d if d < 1 else d - 0.5)
        layers.append(sum(values) / len(values))
    assert loss(student, teacher, batch())["vkd"].item() == pytest.approx(2.0 * sum(layers) / 2, rel=1e-4)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.05, weight_decay=0.1)
    start = loss.projectors[0].weight.clone()
    for _ in range(5):
        optimizer.zero_grad()
        loss(student, teacher, batch())["vkd"].backward()
        optimizer.step()
    weight = loss.projectors[0].weight
    assert (weight - start).abs().max() > 1e-2
    torch.testing.assert_close(weight.T @ weight, torch.eye(4), atol=1e-5, rtol=0)


def test_cosine_matches_the_formula():
    loss = made("cosine", weight=3.0)
    student, teacher = pair("cosine")
    layers = []
    for p, s, t in zip(loss.projectors, student.features, teacher.features, strict=True):
        values = []
        for a, b in zip(p(s).tolist(), t.tolist(), strict=True):
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            values.append(1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
        layers.append(sum(values) / len(values))
    assert loss(student, teacher, batch())["cosine"].item() == pytest.approx(3.0 * sum(layers) / 2, rel=1e-4)
