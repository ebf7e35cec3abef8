"""A student narrower than its teacher, saved with a projection: every way to embed with it uses the teacher's width."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.tasks.metrics import spearman
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.utils.errors import UserError
from tasks.test_embedding import data, embed, teacher  # noqa: F401

NARROW = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
NARROW |= {"intermediate_size": 32, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
WIDE = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def words(tmp_path, data, student, *more):  # noqa: F811
    options = ["--teacher", str(tmp_path / "teacher"), "--student", json.dumps(student), "--learning_rate", "3e-3"]
    return ["embed/l3-cosine", [*data, *options, "--keep_projection", "true", "--baseline", "false", *more]]


def projected(folder, texts):
    """Embeddings by transformers and the files of ``2_Dense`` alone, as sentence-transformers computes them."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
        return normalize(torch.stack(means) @ dense["linear.weight"].T + dense["linear.bias"], dim=1)


def test_the_student_searches_what_its_teacher_indexed(tmp_path, data):  # noqa: F811
    record = run(*parse(*words(tmp_path, data, NARROW, "--num_train_epochs", "3")))
    folder = tmp_path / "out" / "student"
    modules = json.loads((folder / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modes = {path.stat().st_mode for path in (folder / "2_Dense").iterdir()}
    assert len(modes) == 1  # who may read its config may read the projection
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    assert (config["in_features"], config["out_features"], config["bias"]) == (16, 32, True)
    assert config["activation_function"] == "torch.nn.modules.linear.Identity"

    table = read_table(str(tmp_path / "sts.csv"), "validation")
    first, second = table.columns["sentence1"], table.columns["sentence2"]
    queries, own = projected(folder, first), projected(folder, second)
    documents = embed(tmp_path / "teacher", second)
    gold = [float(score) for score in table.columns["score"]]
    scores = {"spearman": own, "cross_spearman": documents}
    for name, theirs in scores.items():
        expected = spearman(np.stack([(queries * theirs).sum(1).numpy(), gold], axis=1))
        assert record.metrics["student"][name] == pytest.approx(expected, abs=0.2), name
    assert record.metric_names == ["cross_spearman", "spearman"]
    assert record.metrics["teacher"]["cross_spearman"] == record.metrics["teacher"]["spearman"] > 99

    model = TextModel(str(folder))
    found = [result["embedding"] for result in model.predict([first], progress=False)]
    np.testing.assert_allclose(found, queries, atol=1e-5)
    again = ["--task", "embedding", "--teacher", str(folder), "--validation_file", str(tmp_path / "sts.csv")]
    score = evaluate_saved(*parse(None, [*again, "--use_cpu", "true", "--bf16", "false"]))["spearman"]
    assert score == pytest.approx(record.metrics["student"]["spearman"], abs=1e-6)
    card = (folder / "README.md").read_text()
    assert "SentenceTransformer(" in card and "the 32 numbers of its teacher" in card
    with pytest.raises(UserError, match="makes its embeddings by Dense"):
        run(*parse("embed/l3-cosine", [*data, "--output_dir", str(tmp_path / "b"), "--teacher", str(folder)]))


@pytest.mark.slow
def test_the_exported_model_has_the_projection(tmp_path, data):  # noqa: F811
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from itrd_nlp.export.export import export

    run(*parse(*words(tmp_path, data, NARROW, "--max_steps", "2", "--latency", "false")))
    folder = tmp_path / "out" / "student"
    export(str(folder), tmp_path / "onnx", int8=False)
    texts = [["the king", "where is the river house of the city"]]
    exported, saved = [TextModel(str(f)).predict(texts, progress=False) for f in (tmp_path / "onnx", folder)]
    for a, b in zip(exported, saved, strict=True):
        assert len(a["embedding"]) == 32
        np.testing.assert_allclose(a["embedding"], b["embedding"], atol=1e-4)
    of_onnx = json.loads((tmp_path / "onnx" / "1_Pooling" / "config.json").read_text())
    assert of_onnx["word_embedding_dimension"] == 32  # the graph projects: there is no Dense
    assert "Dense" not in (tmp_path / "onnx" / "modules.json").read_text()


def test_sentence_transformers_loads_it(tmp_path, data):  # noqa: F811
    library = pytest.importorskip("sentence_transformers")
    run(*parse(*words(tmp_path, data, NARROW, "--max_steps", "2", "--latency", "false")))
    folder = tmp_path / "out" / "student"
    texts = ["the king", "where is the river house of the city"]
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert model.get_sentence_embedding_dimension() == 32
    np.testing.assert_allclose(model.encode(texts), projected(folder, texts), atol=1e-5)


def test_a_student_of_the_teachers_width_needs_none(tmp_path, data):  # noqa: F811
    record = run(*parse(*words(tmp_path, data, WIDE, "--max_steps", "2", "--latency", "false")))
    assert not (tmp_path / "out" / "student" / "2_Dense").exists() and "cross_spearman" in record.metrics["student"]
    recipe, argv = words(tmp_path, data, WIDE, "--max_steps", "2", "--latency", "false")
    with pytest.raises(UserError, match="another run, which differs in keep_projection"):
        run(*parse(recipe, [*argv, "--keep_projection", "false"]))


@pytest.mark.parametrize(
    "changes,message",
    [
        (["--losses", "{itrd: {}}"], "keep_projection with the losses itrd: .*add --losses.cosine.weight 1"),
        (["--pooling", "cls"], "expected --pooling mean and --layer_map last"),
        (["--layer_map", "[[4, 1]]"], "expected --pooling mean and --layer_map last"),
        (["--layer_map", "[[3, 2]]"], "expected --pooling mean and --layer_map last"),  # not the teacher's last
        (["--losses", "{}"], "it is for sentence embeddings that are distilled"),
    ],
)
def test_a_run_without_a_projection_is_one_line(tmp_path, data, changes, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        run(*parse(*words(tmp_path, data, NARROW, *changes)))
