"""Which examples meet in a batch."""

import itertools
from functools import partial

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import tiny
from itrd_nlp.training.sampling import EpochLengthSampler, RankBatchSampler
from itrd_nlp.utils.batches import text_lengths, token_batches

LENGTHS = [5, 60, 17, 17, 33, 8, 9, 41, 2, 24]


def padded_tokens(batch, lengths):
    return len(batch) * -(-max(lengths[i] for i in batch) // 8) * 8


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(8, 2000))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or padded_tokens(batch, lengths) <= budget for batch in batches)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=60), st.integers(8, 2000))
def test_batches_are_full(lengths, budget):
    batches = token_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        longest = -(-max(lengths[i] for i in batch) // 8) * 8
        assert (len(batch) + 1) * longest > budget and max(lengths[i] for i in following) <= longest


def by_tokens(seed=3, epoch=lambda: 0, **ranks):
    return RankBatchSampler(token_batches(LENGTHS, 64), seed, epoch, **ranks)


def test_ranks_share_the_batches_and_take_equally_many():
    ranks = [list(by_tokens(rank=rank, ranks=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(by_tokens(ranks=2))
    assert set(itertools.chain(*ranks[0], *ranks[1])) == set(range(len(LENGTHS)))
    repeated = sum(map(len, itertools.chain(*ranks))) - len(LENGTHS)
    assert 0 <= repeated <= max(map(len, token_batches(LENGTHS, 64)))


@pytest.mark.parametrize("make", [partial(EpochLengthSampler, 2, LENGTHS, LENGTHS), by_tokens])
def test_the_order_depends_on_seed_and_epoch(make):
    now = [0]

    def order(seed):
        return list(make(seed, lambda: now[0]))

    before = order(1)
    assert before == order(1) and before != order(2)
    now[0] = 1
    assert before != order(1)


def test_lengths_are_read_or_counted():
    rows = tiny.rows(5)
    assert text_lengths(rows) == rows["length"]
    assert text_lengths(rows.remove_columns("length")) == [len(ids) for ids in rows["input_ids"]]
    assert text_lengths(Dataset.from_dict({"pixels": [1, 2]})) is None
    assert text_lengths([{"input_ids": [1]}]) is None
