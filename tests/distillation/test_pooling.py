"""Pooling: padding and special tokens, samples that depend on the text alone, and the way back to texts."""

import pytest
import torch

from distillation.test_feature_extractor import batch_of
from itrd_nlp.distillation.pooling import Pooling, real_tokens, sample_tokens
from itrd_nlp.losses.base import by_example
from itrd_nlp.utils.errors import UserError


@pytest.mark.parametrize("left", [False, True])
def test_mean_is_over_real_tokens(left):
    batch = batch_of(5, 3, left=left)
    x = torch.randn(2, 5, 4)
    (pooled,) = Pooling("mean")([x], batch)
    real = [x[0, 1:4].mean(0), x[1, 3:4].mean(0) if left else x[1, 1:2].mean(0)]
    torch.testing.assert_close(pooled, torch.stack(real))


def test_specials_count_where_the_batch_does_not_mark_them_and_where_a_text_has_nothing_else():
    x = torch.randn(1, 4, 3)
    (pooled,) = Pooling("mean")([x], batch_of(4, specials=False))
    torch.testing.assert_close(pooled, x.mean(1))
    (pooled,) = Pooling("mean")([x], batch_of(2, longest=4))
    torch.testing.assert_close(pooled, x[:, :2].mean(1))


@pytest.mark.parametrize("left", [False, True])
def test_cls_is_the_first_token_that_is_not_padding(left):
    x = torch.randn(2, 5, 4)
    (pooled,) = Pooling("cls")([x], batch_of(5, 3, left=left))
    torch.testing.assert_close(pooled, torch.stack([x[0, 0], x[1, 2 if left else 0]]))


def test_tokens_are_the_real_tokens_of_every_example():
    batch = batch_of(5, 4)
    x = torch.randn(2, 5, 3)
    pooled = Pooling("tokens")([x, 2 * x], batch)
    torch.testing.assert_close(pooled[0], torch.cat([x[0, 1:4], x[1, 1:3]]))
    torch.testing.assert_close(pooled[1], 2 * pooled[0])


def test_pooled_means_are_in_full_precision():
    x = torch.randn(2, 200, 4)
    (pooled,) = Pooling("mean")([x.bfloat16()], {"attention_mask": torch.ones(2, 200)})
    torch.testing.assert_close(pooled, x.bfloat16().float().mean(1))


def ids_chosen(batch, count=8):
    chosen = sample_tokens(batch["input_ids"], real_tokens(batch), count)
    return [batch["input_ids"][i][chosen[i]].tolist() for i in range(len(chosen))]


def test_sampled_tokens_depend_on_the_example_alone():
    together = ids_chosen(batch_of(40, 30, 12))
    assert [len(ids) for ids in together] == [8, 8, 8]
    assert together == ids_chosen(batch_of(40, 30, 12, longest=64))
    assert together == ids_chosen(batch_of(40, 30, 12, longest=64, left=True))
    assert together[:1] == ids_chosen(batch_of(40))
    assert {id - 200 for id in together[2]} != set(together[0])


def test_short_texts_give_all_their_tokens_and_no_special_or_padding_one():
    batch = batch_of(6, 3, longest=20)
    assert ids_chosen(batch) == [[2, 3, 4, 5], [102]]
    (pooled,) = Pooling("tokens:8")([torch.randn(2, 20, 3)], batch)
    assert pooled.shape == (5, 3)


def test_sampling_reaches_every_position_about_equally():
    n, length, count = 2000, 34, 8
    ids = torch.randint(1, 1000, (n, length), generator=torch.Generator().manual_seed(0))
    chosen = sample_tokens(ids, torch.ones(n, length, dtype=torch.bool), count)
    share = chosen.float().mean(0)
    assert (chosen.sum(1) == count).all()
    assert (share - count / length).abs().max() < 5 * (count / length / n) ** 0.5


@pytest.mark.parametrize("spec", ["max", "tokens:", "tokens:0", "tokens:x", "mean:3", ""])
def test_wrong_poolings_are_one_line(spec):
    with pytest.raises(UserError, match="pooling"):
        Pooling(spec)


def test_all_tokens_are_all_but_padding():
    batch, x = batch_of(5, 3), torch.randn(2, 5, 3)
    (pooled,) = Pooling("all_tokens")([x], batch)
    assert torch.equal(pooled, torch.cat([x[0], x[1, :3]]))
    assert Pooling("all_tokens").samples(batch).tolist() == [5, 3]


@pytest.mark.parametrize("spec", ["tokens", "all_tokens", "tokens:2"])
def test_samples_go_back_to_their_texts(spec):
    batch, x = batch_of(6, 4, 5), torch.randn(3, 6, 2)
    pool = Pooling(spec)
    (pooled,) = pool([x], batch)
    padded, mask = by_example(pooled, pool.samples(batch))
    assert mask.sum() == len(pooled) and torch.equal(padded[mask], pooled)
    for i, rows in enumerate(pooled.split(pool.samples(batch).tolist())):
        assert torch.equal(padded[i, : len(rows)], rows) and not padded[i, len(rows) :].any()
