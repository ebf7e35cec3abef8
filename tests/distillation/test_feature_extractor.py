"""What is read of a model: layers by hooks, and logits."""

import pytest
import torch

import tiny
from itrd_nlp.distillation.feature_extractor import ForwardHooks, read_logits
from itrd_nlp.distillation.layers import layer_modules
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


def test_hooks_read_what_output_hidden_states_gives_and_are_then_removed():
    model = tiny.bert().eval()
    inputs = {k: v for k, v in tiny.collate(list(tiny.rows(3, labels=False))).items() if k != "special_tokens_mask"}
    model(**inputs, output_hidden_states=True)  # installs transformers' own hooks
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with ForwardHooks(model, layer_modules(model)) as hooks:
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(hooks.features, hidden, strict=True))
    assert count == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(UserError, match="no module 'bert.encoder.layers.9'"):
        ForwardHooks(model, ["bert.encoder.layers.9"])


def test_span_logits_of_padding_lose_every_softmax_and_class_logits_are_left_alone():
    logits = torch.randn(2, 5)
    batch = batch_of(5, 3)
    read = read_logits({"start_logits": logits, "logits": logits}, ["start_logits", "logits"], batch)
    assert read["start_logits"].softmax(-1)[1, 3:].sum() == 0
    assert torch.equal(read["logits"], logits) and torch.equal(read["start_logits"][0], logits[0])
