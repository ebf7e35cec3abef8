"""Models whose layers cannot be read right are refused on the probe."""

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.layers import layer_modules
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.probe import check_features, check_heads, read_probe
from itrd_nlp.distillation.stages import find_stages
from itrd_nlp.utils.errors import UserError


def shaped(kind, head=AutoModel, **fields):
    torch.manual_seed(0)
    common = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"intermediate_size": 32}
    return head.from_config(AutoConfig.for_model(kind, **{**common, **fields})).eval()


def texts_of(count, length):
    ids = torch.randint(5, 40, (count, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("count,length", [(3, 8), (8, 8)])
def test_layers_of_another_order_are_refused(count, length):
    xlnet = shaped("xlnet", d_model=32, n_layer=2, n_head=4, d_inner=32)
    with pytest.raises(
        UserError, match=r"gives \(8, \d, 32\) of \d texts of 8 tokens: expected \(texts, tokens, width"
    ):
        check_features(xlnet, texts_of(count, length), FeatureExtractor([layer_modules(xlnet)[-1]], (), Pooling()))


def test_layers_that_hooks_do_not_see_are_refused():
    bert = shaped("squeezebert", embedding_size=32, **{f"{name}_groups": 1 for name in "qkv"})
    with pytest.raises(UserError, match="was not read: the model does not call it"):
        check_features(bert, texts_of(3, 8), FeatureExtractor([layer_modules(bert)[1]], (), Pooling()))


def test_what_a_model_appends_to_texts_is_not_read():
    model = shaped("longformer", attention_window=[16, 16], max_position_embeddings=64, pad_token_id=0)
    batch, extractor = texts_of(3, 9), FeatureExtractor(layer_modules(model), (), Pooling("all_tokens"))
    check_features(model, batch, extractor)
    features = extractor(model, batch)[1].features
    states = model(**batch, output_hidden_states=True).hidden_states
    assert all(torch.allclose(x, state.flatten(0, 1), atol=1e-5) for x, state in zip(features, states, strict=True))


def test_layers_that_are_not_the_hidden_states_are_refused():
    model = shaped("bert", max_position_embeddings=64)
    hooks, batch = layer_modules(model), texts_of(3, 8)
    check_features(model, batch, FeatureExtractor(hooks, (), Pooling()))
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: output * 2, prepend=True)
    check_features(model, batch, FeatureExtractor(hooks, (), Pooling()))  # as the model tells it
    told = model.forward

    def other(**inputs):
        outputs = told(**inputs)
        outputs["hidden_states"] = (*outputs["hidden_states"][:1], *outputs["hidden_states"][:2])
        return outputs

    model.forward = functools.wraps(told)(other)
    with pytest.raises(UserError, match="encoder.layer.0 gives is not hidden state 1 of the model"):
        check_features(model, batch, FeatureExtractor(hooks[:2], (), Pooling()))


def test_queries_of_another_order_are_refused():
    model = shaped("longformer", attention_window=[16, 16], max_position_embeddings=64, pad_token_id=0)
    queries = "encoder.layer.0.attention.self.query"
    with pytest.raises(UserError, match="query gives"):
        check_features(model, texts_of(3, 9), FeatureExtractor((), (), Pooling(), [queries]))


SWIN = {"embed_dim": 32, "depths": [1], "num_heads": [2], "window_size": 2}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.mark.parametrize("kind,fields", [("swin", SWIN), ("vit", VIT)])
def test_images_without_a_class_token_are_not_pooled_by_it(kind, fields):
    config = AutoConfig.for_model(kind, image_size=16, patch_size=4, **fields)
    model = AutoModelForImageClassification.from_config(config)
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    extractor = FeatureExtractor([find_stages(model).outputs[0]], ("logits",), Pooling("cls"))
    if kind == "swin":
        with pytest.raises(UserError, match=r"pooling cls of swin\.encoder\.layers\.0, which has no class token"):
            read_probe(model, extractor, batch)
    else:
        assert read_probe(model, extractor, batch)[1].features[0].shape == (2, 32)


def test_logits_of_pixels_are_refused():
    with pytest.raises(UserError, match=r"logits of shape \(2, 3, 8, 8\): expected classes of examples"):
        check_heads({"logits": torch.zeros(2, 3, 8, 8)}, {})
    check_heads({"logits": torch.zeros(2, 3), "of_tokens": torch.zeros(2, 5, 3)}, {})
