"""Checkpoints as people bring them: read as they were saved, or refused in one line."""

import copy
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

import tiny
from itrd_nlp.inference.answering import load_model
from itrd_nlp.inference.texts import classify
from itrd_nlp.models.classes import saved_config
from itrd_nlp.models.loading import load_checkpoint, load_tokenizer
from itrd_nlp.utils.errors import UserError

CLASSES = AutoModelForSequenceClassification


@pytest.fixture
def teacher(tmp_path):
    """A classifier, and the folder it was saved to."""
    model = tiny.bert("classes", layers=2)
    model.save_pretrained(tmp_path / "teacher")
    return model.eval(), tmp_path / "teacher"


def rename(folder, change):
    """Save the weights of a folder under other names; those that become None are left out."""
    path = folder / "model.safetensors"
    state = {change(name): value for name, value in load_file(path).items()}
    save_file({name: value for name, value in state.items() if name is not None}, path, {"format": "pt"})


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refusal(folder, model_class=CLASSES):
    with pytest.raises(UserError) as caught:
        load_checkpoint(str(folder), model_class)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


PREFIXES = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, the other way round": lambda name: f"_orig_mod.module.{name}",
    "Lightning": lambda name: f"model.{name}",
    "a member of another name": lambda name: f"net.student.{name}",
    "layers compiled one by one": lambda name: name.replace("layer.0.", "layer.0._orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layer.1.", "layer.1._fsdp_wrapped_module."),
    "checkpointed layers": lambda name: name.replace("layer.1.", "layer.1._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_wrapper_s_prefix_is_removed(teacher, kind):
    model, folder = teacher
    rename(folder, PREFIXES[kind])
    loaded = load_checkpoint(str(folder), CLASSES)
    assert same(loaded.model, model) and not loaded.new
    assert loaded.model.name_or_path == str(folder) and not loaded.model.training
    loaded.model.save_pretrained(folder / "again")
    assert load_file(folder / "again/model.safetensors").keys() == model.state_dict().keys()


def test_a_prefix_before_an_encoder_alone(teacher):
    model, folder = teacher
    model.bert.save_pretrained(folder)
    rename(folder, lambda name: f"_orig_mod.{name}")
    loaded = load_checkpoint(str(folder), CLASSES)
    assert same(loaded.model.bert, model.bert) and loaded.new == {"classifier.weight", "classifier.bias"}
    assert same(load_checkpoint(str(folder), AutoModel).model, model.bert)


def test_other_members_beside_a_prefixed_model_are_left(teacher):
    model, folder = teacher
    rename(folder, lambda name: f"model.{name}")
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"loss.weight": torch.ones(2)}, path, {"format": "pt"})
    assert same(load_checkpoint(str(folder), CLASSES).model, model)


def test_two_models_in_one_checkpoint_are_refused(teacher):
    _, folder = teacher
    path = folder / "model.safetensors"
    both = {f"{role}.{name}": value for name, value in load_file(path).items() for role in ("ema", "model")}
    save_file({name: value.clone() for name, value in both.items()}, path, {"format": "pt"})
    assert "holds several models, under ema. and model." in refusal(folder)


def test_prefixes_in_a_pickle_and_in_shards(teacher):
    model, folder = teacher
    model.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for part in {*index["weight_map"].values()}:
        state = load_file(folder / part)
        save_file({f"module.{name}": value for name, value in state.items()}, folder / part, {"format": "pt"})
    index["weight_map"] = {f"module.{name}": part for name, part in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert same(load_checkpoint(str(folder), CLASSES).model, model)
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    assert same(load_checkpoint(str(folder), CLASSES).model, model)


@pytest.mark.parametrize("model_class", [CLASSES, AutoModelForQuestionAnswering, AutoModel])
@pytest.mark.parametrize("named", [True, False])
def test_an_encoder_s_missing_weight_is_refused_by_name(teacher, model_class, named):
    _, folder = teacher
    lost = "bert.encoder.layer.1.output.dense.weight"
    rename(folder, lambda name: None if name == lost else name)
    if not named:
        edit(folder, architectures=None)
    assert f"lacks {lost if model_class is not AutoModel else lost.removeprefix('bert.')}: expected" in refusal(
        folder, model_class
    )


def test_no_weight_at_all_is_refused(teacher):
    _, folder = teacher
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    assert "lacks bert.embeddings.LayerNorm.bias and " in refusal(folder)


def test_a_head_that_the_config_names_must_be_there(teacher):
    model, folder = teacher
    rename(folder, lambda name: None if name == "classifier.bias" else name)
    assert "lacks classifier.bias: expected a trained model" in refusal(folder)
    edit(folder, architectures=["BertModel"])
    assert load_checkpoint(str(folder), CLASSES).new == {"classifier.bias", "classifier.weight"}


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining, BertModel])
def test_a_pretrained_encoder_starts_with_a_seeded_new_head(tmp_path, caplog, capsys, kind):
    torch.manual_seed(0)
    model = kind(tiny.config(layers=2))
    model.save_pretrained(tmp_path)
    capsys.readouterr()
    with caplog.at_level(logging.INFO):
        first, again = [load_checkpoint(str(tmp_path), CLASSES, seed=5) for _ in range(2)]
    assert not caplog.records and not any(capsys.readouterr())  # what is new will be trained: no report
    encoder = {name: value for name, value in first.model.bert.state_dict().items() if not name.startswith("pooler")}
    assert all(torch.equal(value, model.base_model.state_dict()[name]) for name, value in encoder.items())
    assert {"classifier.weight", "classifier.bias"} <= first.new and same(first.model, again.model)
    assert ("bert.pooler.dense.weight" in first.new) == (kind is BertForMaskedLM)


@pytest.mark.parametrize("kind", [BertForTokenClassification, BertForMultipleChoice])
@pytest.mark.parametrize("outputs", [1, 2])
def test_another_task_s_head_is_new_though_it_fits(tmp_path, kind, outputs):
    torch.manual_seed(0)
    model = kind(tiny.config(layers=2, num_labels=outputs))
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path), CLASSES, seed=7)
    assert {"classifier.weight", "classifier.bias"} <= loaded.new
    assert not torch.equal(loaded.model.classifier.weight[:1], model.classifier.weight[:1])
    assert same(loaded.model.bert.encoder, model.bert.encoder)
    with pytest.raises(UserError, match="expected a (classifier of texts|model for classification)"):
        shutil.copytree(tmp_path, tmp_path / "copy")
        classify(str(tmp_path / "copy"), "text")


@pytest.mark.parametrize("architectures", [None, ["BertForMyOwnTask"]])
def test_a_head_that_the_config_does_not_tell_of_is_new(tmp_path, architectures):
    """Nobody knows its classes, nor their order."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny.config(layers=2, num_labels=2))
    model.save_pretrained(tmp_path)
    edit(tmp_path, architectures=architectures)
    loaded = load_checkpoint(str(tmp_path), CLASSES, seed=7)
    assert {"classifier.weight", "classifier.bias"} <= loaded.new
    assert same(loaded.model.bert.encoder, model.bert.encoder)
    assert not torch.equal(loaded.model.classifier.weight, model.classifier.weight)


def test_relative_positions_that_transformers_no_longer_computes_are_refused(teacher):
    _, folder = teacher
    path = folder / "model.safetensors"
    more = {"bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 4)}
    save_file({**load_file(path), **more}, path, {"format": "pt"})
    assert "its positions are relative ones" in refusal(folder)


def test_a_head_of_the_same_task_under_another_name_is_no_new_one(tmp_path):
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48)
    model = XLNetForQuestionAnsweringSimple(config)
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path), AutoModelForQuestionAnswering)
    assert same(loaded.model, model) and not loaded.new


def test_other_shapes_are_refused(teacher):
    model, folder = teacher
    edit(folder, intermediate_size=48)
    assert "has the shape (64," in refusal(folder) and "its config says (48," in refusal(folder)
    edit(folder, intermediate_size=64, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert "classifier.bias has the shape (2,), its config says (3,)" in refusal(folder)
    edit(folder, architectures=["BertForTokenClassification"])
    assert "classifier.bias" in load_checkpoint(str(folder), CLASSES).new


def test_more_layers_than_the_config_says_are_refused(teacher):
    _, folder = teacher
    edit(folder, num_hidden_layers=1)
    assert "its config says 1 layers" in refusal(folder)
    edit(folder, num_hidden_layers=3)
    assert "lacks bert.encoder.layer.2." in refusal(folder)


def test_a_missing_shard_is_refused(teacher):
    model, folder = teacher
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and same(load_checkpoint(str(folder), CLASSES).model, model)
    shards[-1].unlink()
    refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_becomes_fp32(teacher, dtype):
    model, folder = teacher
    model.to(dtype).save_pretrained(folder)
    loaded = load_checkpoint(str(folder), CLASSES)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert same(loaded.model, model.float())


def test_nonfinite_weights_are_refused(teacher):
    model, folder = teacher
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    assert "bert.encoder.layer.0.output.dense.weight holds non-finite numbers" in refusal(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_are_refused(teacher, method):
    _, folder = teacher
    edit(folder, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    assert f"were quantised ({method})" in refusal(folder)


def test_an_adapter_is_to_be_merged(tmp_path, tokenizer):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "bert"}')
    save_file({"base_model.model.x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert "merge_and_unload().save_pretrained" in refusal(tmp_path)
    for load in (load_model, load_tokenizer):  # whichever comes first
        with pytest.raises(UserError, match="is an adapter.*merge_and_unload"):
            load(str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an adapter"):
        load_tokenizer(str(tmp_path))


def test_the_positions_of_a_model_limit_a_tokenizer_that_states_no_limit(tmp_path, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)  # other tests share it
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == VERY_LARGE_INTEGER  # no model
    tiny.bert(max_position_embeddings=60).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == 56  # batches are padded to multiples of 8
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == 20
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    unlimited = tmp_path / "unlimited"
    tokenizer.save_pretrained(unlimited)
    XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=16).save_pretrained(unlimited)
    assert load_tokenizer(unlimited).model_max_length == VERY_LARGE_INTEGER


def test_a_config_with_a_value_of_another_type_is_one_line(teacher):
    _, folder = teacher
    edit(folder, layer_norm_eps="small")
    refusal(folder)
    assert saved_config(str(folder)) is None


@pytest.mark.parametrize("values", [{"id2label": 5}, {"id2label": [1, 2]}, {"num_labels": "a"}, {"dtype": "float77"}])
def test_a_config_that_holds_something_else_is_one_line(teacher, values):
    _, folder = teacher
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    refusal(folder)
    assert saved_config(str(folder)) is None


def test_architectures_that_are_not_a_list_are_one_line(teacher):
    _, folder = teacher
    edit(folder, architectures="BertModel")
    assert "has architectures 'BertModel': expected a list of names" in refusal(folder)


def test_a_config_that_asks_for_code_of_its_own_is_not_run(teacher):
    _, folder = teacher
    (folder / "mine.py").write_text("raise SystemExit('run')")
    edit(folder, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForSequenceClassification": "mine.M"})
    assert "no model in" in refusal(folder)


def test_torch_s_random_state_is_left(teacher):
    _, folder = teacher
    edit(folder, architectures=["BertModel"])
    rename(folder, lambda name: name if name.startswith("bert") else None)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    load_checkpoint(str(folder), AutoModelForTokenClassification, seed=1)
    assert torch.equal(torch.rand(1), wanted)


def test_the_encoder_of_a_headed_model(teacher):
    model, folder = teacher
    assert isinstance(model, BertForSequenceClassification)
    assert same(load_checkpoint(str(folder), AutoModel).model, model.bert)
