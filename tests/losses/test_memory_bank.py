"""The memory bank against plain loops: scores, constants, update."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from itrd_nlp.losses import memory_bank
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.utils.errors import UserError

N, K, WIDTH, TEMPERATURE = 9, 4, 3, 0.5


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return MemoryBank(N, WIDTH, K, TEMPERATURE, momentum=0.5).double()


def unit(n, seed):
    return F.normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def by_hand(anchors, bank, index, negatives):
    """The published objective, example by example: p = exp(v.m / T) / Z with Z = N mean(exp(v.m / T))."""
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
    negatives = torch.tensor([[1, 2, 7, 8], [0, 1, 2, 3], [5, 4, 1, 0]])
    bank._others = lambda index: negatives
    expected = sum(by_hand(v, m, index, negatives.tolist()) for v, m in zip((student, teacher), banks, strict=True))
    assert bank(student, teacher, index).item() == pytest.approx(expected, rel=1e-9)


def test_a_bank_may_be_in_half_precision(bank):
    """DeepSpeed casts all buffers; embeddings stay in fp32."""
    half, index = MemoryBank(N, WIDTH, K, TEMPERATURE, momentum=0.5).bfloat16(), torch.tensor([0, 4, 8])
    student, teacher = unit(3, 1).float().requires_grad_(), unit(3, 2).float()
    half(student, teacher, index).backward()
    assert student.grad.isfinite().all() and half.student.dtype == torch.bfloat16


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


def test_an_update_mixes_and_has_length_one_and_touches_its_examples_alone():
    torch.manual_seed(0)
    bank = MemoryBank(N, WIDTH, K, TEMPERATURE, momentum=0.8).double()
    old_student, old_teacher = bank.student.clone(), bank.teacher.clone()
    student, teacher, index = unit(2, 1), unit(2, 2), torch.tensor([3, 5])
    bank(student, teacher, index)
    for old, new, given in ((old_student, bank.student, student), (old_teacher, bank.teacher, teacher)):
        torch.testing.assert_close(new[index], F.normalize(0.8 * old[index] + 0.2 * given, dim=1))
        rest = [i for i in range(N) if i not in index.tolist()]
        assert torch.equal(new[rest], old[rest])


def test_the_gradient_is_that_of_the_bank_before_its_update(bank):
    student = unit(2, 1).requires_grad_()
    torch.manual_seed(0)
    bank(student, unit(2, 2), torch.tensor([3, 5])).backward()
    assert student.grad.isfinite().all() and student.grad.any()


def test_negatives_are_of_other_classes_and_drawn_without_replacement_where_there_are_enough():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 0])
    bank = MemoryBank(N, WIDTH, 6, TEMPERATURE, 0.5, labels)  # others: 6 of class 2, 5 of class 0, 7 of class 1
    torch.manual_seed(0)
    drawn = torch.stack([bank._others(torch.arange(N)) for _ in range(300)], 1)
    for place, rows in enumerate(drawn):
        others = {i for i in range(N) if labels[i] != labels[place]}
        assert {*rows.flatten().tolist()} == others
        distinct = {len({*row}) for row in rows.tolist()}
        assert distinct == {6} if len(others) >= 6 else min(distinct) < 5  # as numpy.random.choice of RepDistiller
        counts = rows.flatten().bincount(minlength=N)[labels != labels[place]]
        assert counts.min() > 0.8 * counts.float().mean()


def test_a_class_with_fewer_others_than_negatives_repeats_them():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 0])
    bank = MemoryBank(N, WIDTH, 400, TEMPERATURE, 0.5, labels)
    for place, drawn in enumerate(bank._others(torch.arange(N))):
        assert {*drawn.tolist()} == {i for i in range(N) if labels[i] != labels[place]}


@pytest.mark.parametrize("distinct", [memory_bank._distinct_by_shuffling, memory_bank._distinct_by_sorting])
def test_every_subset_is_as_likely(distinct):
    torch.manual_seed(0)
    room = torch.tensor([[4], [5]]).repeat(3000, 1)
    drawn = distinct(room, 2, 5).sort(1).values
    for size in (4, 5):
        pairs, counts = drawn[room[:, 0] == size].unique(dim=0, return_counts=True)
        assert pairs.tolist() == [[*pair] for pair in itertools.combinations(range(size), 2)]
        expected = 3000 / len(pairs)
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


class Synchronisations(TorchDispatchMode):
    """Counts what asks the device for a number and waits for it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_only_the_first_batch_waits_for_the_device(bank, monkeypatch):
    monkeypatch.setattr(memory_bank, "_distinct_by_shuffling", memory_bank._distinct_by_sorting)  # as on a GPU
    batch = unit(3, 1), unit(3, 2), torch.tensor([0, 4, 8])
    counts = []
    for _ in range(3):
        with Synchronisations() as seen:
            bank(*batch)
        counts.append(seen.count)
    again = MemoryBank(N, WIDTH, K, TEMPERATURE, momentum=0.5).double()
    again.load_state_dict(bank.state_dict())
    again(*batch)
    assert counts[0] > 0 and counts[1:] == [0, 0]
    assert torch.equal(again.log_z, bank.log_z)  # of the checkpoint, not of its own first batch


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_first_batch_that_is_not_finite_fixes_nothing(bank, value):
    bank(torch.full((3, WIDTH), value).double(), unit(3, 2), torch.tensor([0, 4, 8]))
    total = bank(unit(3, 1), unit(3, 2), torch.tensor([0, 4, 8]))
    assert total.isfinite() and bank.log_z.isfinite().all()


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match="of one class"):
        MemoryBank(N, WIDTH, K, TEMPERATURE, 0.5, torch.zeros(N, dtype=torch.long))
