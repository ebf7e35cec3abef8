"""Taps, layer maps and pooling."""

import pytest
import torch

import tiny
from itrd_nlp.errors import UserError
from itrd_nlp.pooling import Pooling, real_tokens, sample_tokens
from itrd_nlp.representation import Taps, layer_pairs, represent, tap_name
from itrd_nlp.text.students import find_layers


def batch_of(*lengths, longest=None, left=False, specials=True):
    """Rows of distinct ids with one special token at each end."""
    longest = longest or max(lengths)
    rows = {"input_ids": [], "attention_mask": [], "special_tokens_mask": []}
    for i, n in enumerate(lengths):
        pad = [0] * (longest - n)
        made = [[100 * i + j + 1 for j in range(n)], [1] * n, [1, *[0] * (n - 2), 1]]
        for key, values, filler in zip(rows, made, (0, 0, 1), strict=True):
            extra = [filler] * len(pad)
            rows[key].append(extra + values if left else values + extra)
    batch = {key: torch.tensor(values) for key, values in rows.items()}
    return batch if specials else {k: v for k, v in batch.items() if k != "special_tokens_mask"}


def test_taps_read_what_output_hidden_states_gives_and_then_let_go():
    model = tiny.bert().eval()
    name, layers = find_layers(model)
    inputs = {k: v for k, v in tiny.collate(list(tiny.rows(3, labels=False))).items() if k != "special_tokens_mask"}
    model(**inputs, output_hidden_states=True)  # installs transformers' own hooks
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with Taps(model, [tap_name(name, i) for i in range(len(layers) + 1)]) as taps:
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(taps.features, hidden, strict=True))
    assert count == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(UserError, match="no module 'bert.encoder.layers.9'"):
        Taps(model, ["bert.encoder.layers.9"])


@pytest.mark.parametrize(
    "spec,teacher,student,pairs",
    [
        ("last", 12, 3, [[12, 3]]),
        ("even", 12, 6, [[2, 1], [4, 2], [6, 3], [8, 4], [10, 5], [12, 6]]),
        ("even", 12, 3, [[4, 1], [8, 2], [12, 3]]),
        ("even", 6, 4, [[2, 1], [3, 2], [4, 3], [6, 4]]),
        ("even", 2, 4, [[1, 1], [1, 2], [2, 3], [2, 4]]),
        ([[0, 0], [5, 2]], 6, 2, [[0, 0], [5, 2]]),
    ],
)
def test_layer_maps(spec, teacher, student, pairs):
    assert layer_pairs(spec, teacher, student) == pairs


@pytest.mark.parametrize("spec", ["first", [], [[1]], [[13, 1]], [[1, 4]], [["a", 1]], [[1, -1]], [[True, 1]], ["12"]])
def test_wrong_layer_maps_are_one_line(spec):
    with pytest.raises(UserError, match="layer_map") as error:
        layer_pairs(spec, 12, 3)
    assert "\n" not in str(error.value)


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


def test_span_logits_of_padding_lose_every_softmax_and_class_logits_are_left_alone():
    logits = torch.randn(2, 5)
    batch = batch_of(5, 3)
    said = represent({"start_logits": logits, "logits": logits}, ["start_logits", "logits"], (), batch)
    assert said.logits["start_logits"].softmax(-1)[1, 3:].sum() == 0
    assert torch.equal(said.logits["logits"], logits) and torch.equal(said.logits["start_logits"][0], logits[0])
