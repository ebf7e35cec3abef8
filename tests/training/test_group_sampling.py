"""Batches of complete groups."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from forked import on_ranks
from itrd_nlp.losses.base import GROUP
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.group_sampling import GroupSampler, check_groups, group_sampler, is_grouped
from itrd_nlp.utils.errors import UserError
from training.test_trainer import digest, trainer, weights

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


@pytest.mark.parametrize("name", ["labels", "label"])
def test_relevance_is_read_under_either_name_of_the_labels(tmp_path, name):
    data = Dataset.from_dict({GROUP: [0, 0, 0, 1], "input_ids": [[1]] * 4, name: [0, 0, 1, 0]})
    args = ITRDArguments(str(tmp_path), per_device_train_batch_size=4, documents_per_query=2, use_cpu=True)
    for epoch in range(10):
        sampler = group_sampler(args, data, None, 0, lambda: epoch)  # noqa: B023
        assert 2 in [*itertools.chain(*sampler)]


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


def scored(n=40, seed=0):
    """Random texts with relevances, in groups of one to twelve."""
    draw = np.random.default_rng(seed)
    groups = np.sort(draw.choice(9, n, p=[0.3, *[0.0875] * 8]))
    rows = tiny.rows(n, labels=False, seed=seed).add_column("labels", [[float(i % 5 == 0)] for i in range(n)])
    return rows.add_column(GROUP, groups)


def reranker(folder, teacher=None, **options):
    """A trainer of tiny rerankers."""
    kind = {"num_labels": 1, "problem_type": "multi_label_classification"}
    losses = {"listwise": {}, "margin_mse": {}, "itrd": {}}
    options = {"losses": losses, "documents_per_query": 4, "max_steps": -1, "num_train_epochs": 3, **options}
    teacher = teacher or tiny.bert("classes", initializer_range=0.3, **kind)
    student = tiny.bert("classes", layers=2, seed=3, hidden_dropout_prob=0.1, **kind)
    return trainer(folder, teacher=teacher, student=student, data=scored(), **options)


@pytest.mark.parametrize("order", [{}, {"train_sampling_strategy": "random"}, {"tokens_per_batch": 128}])
def test_a_resumed_run_draws_the_same_documents(tmp_path, order):
    options = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None, **order}
    complete = reranker(tmp_path, **options)
    complete.train()
    resumed = reranker(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.state.global_step == complete.state.global_step > 6
    expected = weights(complete)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())


def test_models_never_see_the_groups(tmp_path):
    made = reranker(tmp_path)
    batch = next(iter(made.get_train_dataloader()))
    assert GROUP in batch and len(batch[GROUP]) == len(batch["labels"])
    seen = []
    made.student.register_forward_pre_hook(lambda module, args, kwargs: seen.append({*kwargs}), with_kwargs=True)
    made.train()
    assert seen and all(GROUP not in names for names in seen)


def on_a_rank(folder):
    made = reranker(folder)
    groups = [sorted({*batch[GROUP].tolist()}) for batch in made.get_train_dataloader()]
    made.train()
    return [made.args.world_size, digest(made), made.state.global_step, groups]


def test_two_ranks_take_different_groups_and_stay_equal(tmp_path):
    ranks = on_ranks(on_a_rank, tmp_path)
    assert ranks[0][:3] == ranks[1][:3] and ranks[0][0] == 2
    both = [rank[3] for rank in ranks]
    assert len(both[0]) == len(both[1]) and both[0] != both[1]
    assert {group for rank in both for batch in rank for group in batch} == {*scored()[GROUP]}


def test_a_memory_bank_on_ranks_is_refused(tmp_path):
    args = ITRDArguments(str(tmp_path), losses={"crd": {}})
    check_groups(args, scored())
    with pytest.raises(UserError, match="crd with groups of documents on 2 processes"):
        check_groups(SimpleNamespace(**{**vars(args), "world_size": 2, "documents_per_query": None}), scored())


def test_arguments_that_do_not_go_with_the_data_are_one_line(tmp_path):
    data = tiny.rows(4)
    assert not is_grouped(data)
    with pytest.raises(UserError, match="documents_per_query 4: it is for data with queries, as of --task reranking"):
        check_groups(ITRDArguments(str(tmp_path), documents_per_query=4), data)
    with pytest.raises(UserError, match="documents_per_query is 0: expected 1 or more"):
        ITRDArguments(str(tmp_path), documents_per_query=0)
    grouped = data.add_column(GROUP, [3, 3, 1, 1])
    assert is_grouped(grouped)
    check_groups(ITRDArguments(str(tmp_path), documents_per_query=4), grouped)
