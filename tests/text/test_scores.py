"""Metrics against their definitions in plain Python."""

import math
import random

import numpy as np
import pytest

from itrd_nlp.text.scores import confusion, macro_f1, matthews, shares_of_f1, shares_of_pearson, shares_of_spearman


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@pytest.mark.parametrize("seed", range(5))
def test_correlations_with_ties(seed):
    draw = random.Random(seed)
    x, y = [[float(draw.randint(0, 8)) for _ in range(30)] for _ in range(2)]
    found = shares_of_spearman(np.array(x), np.array(y)), shares_of_pearson(np.array(x), np.array(y))
    assert found[0].mean() == pytest.approx(100 * pearson(ranks(x), ranks(y)))
    assert found[1].mean() == pytest.approx(100 * pearson(x, y))
    assert shares_of_spearman(np.ones(4), np.arange(4.0)).tolist() == [0.0] * 4


@pytest.mark.parametrize("seed", range(5))
def test_classes(seed):
    draw = random.Random(seed)
    gold, said = [[draw.randint(0, 3) for _ in range(40)] for _ in range(2)]
    said[0] = gold[0] = 1
    counts = confusion(np.array(said), np.array(gold), 5)  # one class never occurs
    f1s = []
    for c in range(4):
        right = sum(a == b == c for a, b in zip(said, gold, strict=True))
        f1s.append(200 * right / (said.count(c) + gold.count(c)))
    assert macro_f1(counts) == pytest.approx(sum(f1s) / 4)

    # Matthews' correlation is Pearson's of the indicators of all classes, centred class by class
    def covariance(a, b):
        columns = [([x == c for x in a], [x == c for x in b]) for c in range(5)]
        return sum(sum(p * q for p, q in zip(u, v, strict=True)) / 40 - sum(u) * sum(v) / 1600 for u, v in columns)

    expected = covariance(said, gold) / math.sqrt(covariance(said, said) * covariance(gold, gold))
    assert matthews(counts) == pytest.approx(100 * expected)
    assert matthews(confusion(np.zeros(4, int), np.array([0, 0, 1, 1]), 2)) == 0


def test_shares_of_f1_have_it_as_their_mean():
    right, said, gold = [1, 0, 2], [2, 1, 2], [1, 0, 4]
    precision, recall = 3 / 5, 3 / 5
    assert shares_of_f1(right, said, gold).mean() == pytest.approx(200 * precision * recall / (precision + recall))
    assert shares_of_f1([0, 0], [0, 0], [0, 0]).tolist() == [100.0, 100.0]
