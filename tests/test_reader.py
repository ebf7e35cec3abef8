"""What is read of a model outside of training."""

import pytest
import torch

import tiny
from itrd_nlp.reader import accepted_inputs, layer_features


@pytest.mark.parametrize("layer", [-1, 0, 2])
def test_a_layer_s_features_are_those_of_the_hidden_states_at_real_tokens(layer):
    model = tiny.bert(hidden_dropout_prob=0.5)
    batch = tiny.collate(list(tiny.rows(5)))
    found = layer_features(model.train(), batch, layer)
    assert model.training and not found.requires_grad
    hidden = model.eval()(**accepted_inputs(model, batch), output_hidden_states=True).hidden_states[layer]
    real = batch["attention_mask"].bool() & ~batch["special_tokens_mask"].bool()
    rows = [hidden[i, j] for i, text in enumerate(real) for j, is_real in enumerate(text) if is_real]
    assert torch.equal(found, torch.stack(rows))


def test_the_pooling_may_be_another():
    model, batch = tiny.bert(), tiny.collate(list(tiny.rows(5)))
    assert layer_features(model, batch, pooling="mean").shape == (5, 32)
