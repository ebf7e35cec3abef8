"""Batches of complete groups."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from itrd_nlp.losses.base import GROUP
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.group_sampling import GroupSampler, check_groups, group_column
from itrd_nlp.utils.errors import UserError

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=15)


def made(sizes, limit=8, seed=1, epoch=0, **options):
    """A sampler over shuffled documents, their groups and lengths."""
    draw = np.random.default_rng(0)
    groups = draw.permutation(np.repeat(np.arange(len(sizes)) * 5 + 2, sizes))
    lengths = draw.integers(3, 60, len(groups))
    return GroupSampler(groups, lengths, limit, seed, lambda: epoch, **options), groups, lengths


def padded(batch, lengths):
    return len(batch) * -(-max(lengths[i] for i in batch) // 8) * 8


@settings(deadline=None)
@given(SIZES, st.integers(1, 20), st.integers(1, 14), st.integers(0, 3))
def test_each_group_is_in_one_batch_with_as_many_documents_as_fit(sizes, limit, cap, epoch):
    sampler, groups, _ = made(sizes, limit, epoch=epoch, cap=cap)
    batches = list(sampler)
    assert len(batches) == len(sampler) and all(len(batch) <= limit for batch in batches)
    where = {}
    for number, batch in enumerate(batches):
        for index in batch:
            where.setdefault(groups[index], set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values())
    flat = list(itertools.chain(*batches))
    assert len({*flat}) == len(flat)
    expected = {5 * i + 2: min(size, cap, limit) for i, size in enumerate(sizes)}
    assert Counter(groups[i] for i in flat) == expected
    assert sampler.share == pytest.approx(len(flat) / len(groups))


@settings(deadline=None)
@given(SIZES, st.integers(64, 600))
def test_a_budget_of_tokens_is_kept(sizes, budget):
    sampler, groups, lengths = made(sizes, budget, by_tokens=True)
    batches = list(sampler)
    assert all(padded(batch, lengths) <= budget for batch in batches)
    assert {groups[i] for batch in batches for i in batch} == {*groups}


def test_a_draw_holds_a_relevant_document_where_there_is_one_and_changes_with_the_epoch():
    seen, sizes = set(), [12, 12, 3]
    relevant = None
    for epoch in range(40):
        groups = made(sizes)[1]
        relevant = np.zeros(len(groups), bool)
        relevant[np.flatnonzero(groups == 2)[[1, 7]]] = True
        batches = list(made(sizes, epoch=epoch, cap=4, relevant=relevant)[0])
        flat = [*itertools.chain(*batches)]
        assert relevant[[i for i in flat if groups[i] == 2]].any()
        assert sum(groups[i] == 7 for i in flat) == 4
        seen |= {*flat}
    assert len(seen) == sum(sizes)  # over the epochs every document, both relevant ones among them


def test_the_order_depends_on_seed_and_epoch():
    sizes = [4, 4, 9, 2, 7, 7, 1, 3]
    first = list(made(sizes, cap=3)[0])
    assert first == list(made(sizes, cap=3)[0])
    assert first != list(made(sizes, cap=3, epoch=1)[0]) and first != list(made(sizes, cap=3, seed=2)[0])


def test_groups_meet_by_length_at_random_or_in_their_order():
    sizes = [2] * 12
    _, groups, lengths = made(sizes)
    longest = {group: max(lengths[groups == group]) for group in {*groups}}
    by_length = list(made(sizes, limit=4)[0])
    spans = sorted((min(longest[groups[i]] for i in b), max(longest[groups[i]] for i in b)) for b in by_length)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))
    in_order = list(made(sizes, limit=4, strategy="sequential")[0])
    assert [groups[i] for batch in in_order for i in batch[:1]] == list(dict.fromkeys(groups))[::2]
    at_random = list(made(sizes, limit=4, strategy="random")[0])
    assert sorted(map(sorted, at_random)) not in (sorted(map(sorted, by_length)), sorted(map(sorted, in_order)))


def test_ranks_share_the_groups_and_take_equally_many_batches():
    sizes = [3, 5, 2, 8, 1, 7, 4]
    ranks = [list(made(sizes, rank=rank, ranks=2)[0]) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    groups = made(sizes)[1]
    assert {groups[i] for rank in ranks for batch in rank for i in batch} == {*groups}
    alone = list(made(sizes)[0])
    both = [sorted(batch) for rank in ranks for batch in rank]
    assert all(sorted(batch) in both for batch in alone)


def test_arguments_that_do_not_go_with_the_data_are_one_line(tmp_path):
    data = tiny.rows(4)
    assert group_column(data) is None
    with pytest.raises(UserError, match="documents_per_query 4: it is for data with queries, as of --task reranking"):
        check_groups(ITRDArguments(str(tmp_path), documents_per_query=4), data)
    with pytest.raises(UserError, match="documents_per_query is 0: expected 1 or more"):
        ITRDArguments(str(tmp_path), documents_per_query=0)
    grouped = data.add_column(GROUP, [3, 3, 1, 1])
    assert group_column(grouped) == [3, 3, 1, 1]
    check_groups(ITRDArguments(str(tmp_path), documents_per_query=4), grouped)
