"""The memory bank against plain loops: scores, constants, update."""

import math

import pytest
import torch
import torch.nn.functional as F

from itrd_nlp.errors import UserError
from itrd_nlp.losses.memory import MemoryBank

N, K, WIDTH, TEMPERATURE = 9, 4, 3, 0.5


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return MemoryBank(N, WIDTH, K, TEMPERATURE, momentum=0.5).double()


def unit(n, seed):
    return F.normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def by_hand(anchors, bank, index, draws):
    """The published objective, example by example: p = exp(v.m / T) / Z with Z = N mean(exp(v.m / T))."""
    negatives = [
        [int(j) % (N - 1) + (j % (N - 1) >= i) for j in row] for i, row in zip(index.tolist(), draws, strict=True)
    ]
    columns = [[i, *row] for i, row in zip(index.tolist(), negatives, strict=True)]
    exps = [
        [math.exp(float((v * bank[j]).sum()) / TEMPERATURE) for j in row]
        for v, row in zip(anchors, columns, strict=True)
    ]
    z = sum(map(sum, exps)) / (len(exps) * (K + 1)) * N
    total = 0.0
    for row in exps:
        p = [e / z for e in row]
        total -= math.log(p[0] / (p[0] + K / N)) + sum(math.log((K / N) / (q + K / N)) for q in p[1:])
    return total / len(exps)


def test_scores_are_those_of_the_formula(bank):
    student, teacher, index = unit(3, 1), unit(3, 2), torch.tensor([0, 4, 8])
    banks = [x.clone() for x in (bank.teacher, bank.student)]
    torch.manual_seed(7)
    draws = torch.randint(2**48, (3, K))
    torch.manual_seed(7)
    expected = sum(by_hand(v, m, index, draws) for v, m in zip((student, teacher), banks, strict=True))
    assert bank(student, teacher, index).item() == pytest.approx(expected, rel=1e-9)


def test_an_example_is_never_its_own_negative(bank):
    seen = []
    bank._contrast = lambda scores, side: seen.append(scores) or scores.sum()
    bank.teacher = torch.arange(float(N)).double()[:, None].expand(N, WIDTH) * TEMPERATURE  # a score tells its column
    anchor = torch.zeros(N, WIDTH, dtype=torch.float64)
    anchor[:, 0] = 1
    columns = []
    for _ in range(200):
        seen.clear()
        bank.teacher = torch.arange(float(N)).double()[:, None].expand(N, WIDTH) * TEMPERATURE
        bank(anchor, anchor, torch.arange(N))
        columns.append(seen[0].round().long())
    columns = torch.stack(columns)
    assert (columns[:, :, 0] == torch.arange(N)).all()
    assert (columns[:, :, 1:] != torch.arange(N)[None, :, None]).all()
    for i in range(N):  # and every other one is drawn
        assert set(columns[:, i, 1:].flatten().tolist()) == set(range(N)) - {i}


def test_the_first_batch_fixes_the_constants(bank):
    index = torch.tensor([1, 2])
    bank(unit(2, 1), unit(2, 2), index)
    fixed = bank.log_z.clone()
    assert fixed.isfinite().all() and fixed[0] != fixed[1]
    bank(unit(2, 3), unit(2, 4), index)
    assert torch.equal(bank.log_z, fixed)


def test_an_update_mixes_and_has_length_one_and_touches_its_examples_alone(bank):
    old_student, old_teacher = bank.student.clone(), bank.teacher.clone()
    student, teacher, index = unit(2, 1), unit(2, 2), torch.tensor([3, 5])
    bank(student, teacher, index)
    for old, new, given in ((old_student, bank.student, student), (old_teacher, bank.teacher, teacher)):
        torch.testing.assert_close(new[index], F.normalize((old[index] + given) / 2, dim=1))
        rest = [i for i in range(N) if i not in index.tolist()]
        assert torch.equal(new[rest], old[rest])


def test_the_gradient_is_that_of_the_bank_before_its_update(bank):
    student = unit(2, 1).requires_grad_()
    torch.manual_seed(0)
    bank(student, unit(2, 2), torch.tensor([3, 5])).backward()
    assert student.grad.isfinite().all() and student.grad.any()


def test_negatives_are_of_other_classes_and_all_of_them_are_drawn():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 0])
    bank = MemoryBank(N, WIDTH, 400, TEMPERATURE, 0.5, labels)
    for place, drawn in enumerate(bank._others(torch.arange(N))):
        assert {*drawn.tolist()} == {i for i in range(N) if labels[i] != labels[place]}
        counts = drawn.bincount(minlength=N)[labels != labels[place]]
        assert counts.min() > 0.5 * counts.float().mean()


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match="of one class"):
        MemoryBank(N, WIDTH, K, TEMPERATURE, 0.5, torch.zeros(N, dtype=torch.long))
