"""What the folder of a sentence encoder says about its embeddings."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
from transformers import BertForMaskedLM, BertModel

import tiny
from itrd_nlp.inference.saved_models import saved_task
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.models.sentence_pooling import (
    normalises,
    read_length,
    read_pooling,
    sentence_files,
    set_pooling,
    write_files,
)
from itrd_nlp.models.students import student_from_teacher
from itrd_nlp.utils.errors import DamagedError, UserError


@pytest.mark.parametrize(
    "pooling,expected",
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "max"}, UserError),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, UserError),
    ],
)
def test_the_pooling_in_either_spelling(tmp_path, pooling, expected):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    parts = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    parts.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    if expected is UserError:
        with pytest.raises(UserError, match="makes its embeddings by .*: expected the mean of the tokens or the first"):
            read_pooling(str(tmp_path))
    else:
        assert read_pooling(str(tmp_path)) == expected
    (tmp_path / "modules.json").write_text(json.dumps([*parts, {"path": "2_Dense", "type": "a.b.Dense"}]))
    with pytest.raises(UserError, match="embeddings by"):
        read_pooling(str(tmp_path))


def test_projections_that_this_package_did_not_write_are_refused(tmp_path):
    """Two of them, as EmbeddingGemma has, or one whose weights no function here reads."""
    folder = tmp_path / "2_Dense"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"activation_function": "torch.nn.modules.linear.Identity"}))
    (folder / "pytorch_model.bin").touch()
    parts = [{"path": f"{i}_Dense", "type": "sentence_transformers.models.Dense"} for i in (2, 3)]
    (tmp_path / "modules.json").write_text(json.dumps(parts[:1]))
    with pytest.raises(UserError, match="embeddings by Dense"):
        read_pooling(str(tmp_path))
    (folder / "model.safetensors").touch()
    assert read_pooling(str(tmp_path)) is None
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match="embeddings by Dense"):
        read_pooling(str(tmp_path))
    (tmp_path / "modules.json").write_text(json.dumps(parts[:1]))
    for more in ({"use_residual": True}, {"module_input_name": "token_embeddings"}):
        config = {"activation_function": "torch.nn.modules.linear.Identity", **more}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="embeddings by Dense"):
            read_pooling(str(tmp_path))


def test_an_encoder_whose_config_names_the_head_of_its_pre_training(tmp_path, tokenizer):
    """As all-mpnet-base-v2's does."""
    folder, plain = tmp_path / "published", tmp_path / "plain"
    model = BertForMaskedLM(tiny.config(vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    model.bert.save_pretrained(plain)
    for each in (folder, plain):
        tokenizer.save_pretrained(each)
    assert saved_task(str(folder)) is None
    write_files(sentence_files("mean", 32, 64), folder)
    assert saved_task(str(folder)) == "embedding"
    texts = [["the king", "a city of the north"]]
    assert TextModel(str(folder)).predict(texts) == TextModel(str(plain)).predict(texts)
    student = student_from_teacher(str(folder), "first:2", verbose=False)
    assert type(student) is BertModel and student.config.sentence_pooling == "mean"


def test_the_length_of_a_folder_of_any_version_of_sentence_transformers(tmp_path):
    assert read_length(str(tmp_path)) is None
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert read_length(str(tmp_path)) is None  # of another library
    (tmp_path / "modules.json").write_text("[]")
    assert read_length(str(tmp_path)) == 512
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read_length(str(tmp_path)) is None  # no limit
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 128}')
    assert read_length(str(tmp_path)) == 128
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert read_length(str(tmp_path)) == 64


def test_a_hub_id_that_cannot_be_looked_up_is_warned_of(caplog):
    assert read_pooling("somebody/an-encoder") is None
    assert "somebody/an-encoder: its modules.json" in caplog.text


def test_several_poolings_in_a_list_are_refused(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["cls", "mean"]}))
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "a.Pooling"}]))
    with pytest.raises(UserError, match="embeddings by cls and mean"):
        read_pooling(str(tmp_path))


def test_a_default_prompt_that_nobody_adds_is_warned_of(tmp_path, caplog):
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None}
    for name, warned in ((None, False), ("document", False), ("query", True)):
        prompts["default_prompt_name"] = name
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        read_pooling(str(tmp_path))
        read_pooling(str(tmp_path))
        assert caplog.text.count("puts 'query: ' before its texts, which nothing here does") == warned


def test_embeddings_that_sentence_transformers_makes_otherwise_are_warned_of(tmp_path, caplog):
    for fields, words in (
        ({"truncate_dim": 8, "similarity_fn_name": "cosine"}, "keeps the first 8 numbers"),
        ({"truncate_dim": None, "similarity_fn_name": "dot"}, "compared by their dot product"),
    ):
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(fields))
        write_files(sentence_files("mean", 16, 64, normalise=False), tmp_path)
        assert words not in caplog.text
        read_pooling(str(tmp_path))
        assert words in caplog.text
    caplog.clear()
    other = tmp_path / "normalised"
    other.mkdir()
    (other / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    write_files(sentence_files("mean", 16, 64), other)
    read_pooling(str(other))
    assert not caplog.text and normalises(str(other)) and not normalises(str(tmp_path))


@pytest.mark.parametrize("normalizer", [None, {"type": "Lowercase"}, {"type": "BertNormalizer", "lowercase": True}])
def test_texts_that_nobody_lowercases_are_warned_of(tmp_path, caplog, normalizer):
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    in_sequence = normalizer and {"type": "Sequence", "normalizers": [{"type": "NFC"}, normalizer]}
    for name, each in (("alone", normalizer), ("in a sequence", in_sequence)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
        (folder / "tokenizer.json").write_text(json.dumps({"normalizer": each}))
        read_pooling(str(folder))
        assert ("lowercases its texts" in caplog.text) == (normalizer is None)


def test_a_config_says_it_where_nothing_else_does(tmp_path):
    """As that of a checkpoint, or of a student that the trainer saved."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "sentence_pooling": "cls"}))
    assert read_pooling(str(tmp_path)) == "cls"


def test_a_folder_that_says_nothing(tmp_path):
    assert read_pooling(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["modules.json", "2_Dense/config.json", "sentence_bert_config.json", "config.json"])
def test_a_cut_file_is_named(tmp_path, name):
    parts = [{"path": "", "type": "a.b.Transformer"}, {"path": "2_Dense", "type": "a.b.Dense"}]
    if name != "config.json":  # which is read without modules.json
        (tmp_path / "modules.json").write_text(json.dumps(parts))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"bias": tr')
    pooling = partial(set_pooling, SimpleNamespace())
    readers = {"sentence_bert_config.json": [read_length], "modules.json": [read_length, pooling]}
    for read in readers.get(name, [pooling]):
        with pytest.raises(DamagedError, match=f"{name}: not JSON"):
            read(str(tmp_path))
