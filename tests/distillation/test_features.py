"""ForwardHooks, layer maps, and what a model says."""

import pytest
import torch

import tiny
from itrd_nlp.distillation.features import ForwardHooks, find_layers, layer_pairs, module_of_layer, represent
from itrd_nlp.utils.errors import UserError


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
    with ForwardHooks(model, [module_of_layer(name, i) for i in range(len(layers) + 1)]) as hooks:
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(hooks.features, hidden, strict=True))
    assert count == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(UserError, match="no module 'bert.encoder.layers.9'"):
        ForwardHooks(model, ["bert.encoder.layers.9"])


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


def test_span_logits_of_padding_lose_every_softmax_and_class_logits_are_left_alone():
    logits = torch.randn(2, 5)
    batch = batch_of(5, 3)
    said = represent({"start_logits": logits, "logits": logits}, ["start_logits", "logits"], (), batch)
    assert said.logits["start_logits"].softmax(-1)[1, 3:].sum() == 0
    assert torch.equal(said.logits["logits"], logits) and torch.equal(said.logits["start_logits"][0], logits[0])
