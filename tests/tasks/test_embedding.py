"""Sentence embeddings: distilled without labels, scored by Spearman's correlation, loaded by others."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, BertModel

import tiny
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.intervals import Examples
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.export import run_onnx
from itrd_nlp.export.folder import text_settings
from itrd_nlp.inference.saved_models import load_trained
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel
from itrd_nlp.models.sentence_pooling import read_pooling
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError

WORDS = "the of in to and is was river city king house who where".split()


@pytest.fixture
def teacher(tmp_path, tokenizer):
    torch.manual_seed(0)
    config = tiny.config(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.3)
    model = BertModel(config)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return model.eval()


def embed(folder, texts):
    """One text after the other, by transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return F.normalize(torch.stack(found), dim=1)


@pytest.fixture
def data(tmp_path, teacher):
    draw = random.Random(0)

    def sentence():
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 9)))

    pairs = [(sentence(), sentence()) for _ in range(40)]
    a, b = [embed(tmp_path / "teacher", [pair[i] for pair in pairs]) for i in range(2)]
    lines = [f"{s},{t},{score:.6f}" for (s, t), score in zip(pairs, (a * b).sum(1).tolist(), strict=True)]
    (tmp_path / "sts.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": sentence()}) for _ in range(160)))
    files = ["--train_file", str(tmp_path / "texts.jsonl"), "--validation_file", str(tmp_path / "sts.csv")]
    places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "kept")]
    return [*files, *places, "--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1", "--bf16", "false"]


def test_a_student_gets_closer_to_its_teacher_without_a_label(tmp_path, data):
    options = ["--student.layers", "first:2", "--learning_rate", "3e-3", "--num_train_epochs", "4"]
    cached = ["--teacher_cache", str(tmp_path / "c"), "--eval_strategy", "epoch"]
    record = run(*parse("embed/l3-itrd", [*data, *options, *cached, "--teacher", str(tmp_path / "teacher")]))
    scores = {role: row["spearman"] for role, row in record.metrics.items()}
    assert scores["teacher"] > 99.9  # against itself
    assert scores["student"] > scores["baseline"] + 3 and record.stored_teacher
    assert len(record.evaluations["student"]) == 4 and record.evaluations["student"][-1]["spearman"] == pytest.approx(
        scores["student"], abs=0.5
    )
    assert "baseline" not in record.seconds and record.data == {"training texts": 160, "validation pairs": 40}
    found = Examples(np.array([record.examples["student"]["spearman"]]), "spearman", []).scores()
    assert found == pytest.approx(scores["student"])
    folder = tmp_path / "out" / "student"
    again = ["--task", "embedding", "--teacher", str(folder), "--validation_file", str(tmp_path / "sts.csv")]
    assert evaluate_saved(*parse(None, [*again, "--use_cpu", "true", "--bf16", "false"]))["spearman"] == pytest.approx(
        scores["student"], abs=1e-6
    )
    modules = json.loads((folder / "modules.json").read_text())
    assert [part["type"].rpartition(".")[2] for part in modules] == ["Transformer", "Pooling", "Normalize"]
    assert read_pooling(str(folder)) == "mean"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_folder_is_one_of_sentence_transformers(tmp_path, data, pooling):
    library = pytest.importorskip("sentence_transformers")
    if pooling == "cls":
        pool_first_tokens(tmp_path / "teacher")
    words = ["--student.layers", "first:2", "--teacher", str(tmp_path / "teacher"), "--pooling", pooling]
    run(*parse("embed/l3-cosine", [*data, *words]))
    folder = str(tmp_path / "out" / "student")
    texts = ["the king", "where is the river house of the city"]
    found = library.SentenceTransformer(folder, device="cpu").encode(texts)
    expected = [row["embedding"] for row in TextModel(folder).predict([texts])]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert pooling == "cls" or np.allclose(found, embed(folder, texts), atol=1e-5)


@pytest.mark.parametrize("length,expected", [(16, 16), (400, 400), (4000, 512), (None, 256), ("16", 256)])
def test_texts_are_cut_where_the_encoders_folder_says(tmp_path, tokenizer, teacher, length, expected):
    folder = tmp_path / "teacher"
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    tokenizer.model_max_length = 512
    task = EmbeddingTask(tokenizer, None, None, encoder=str(folder))
    exported = text_settings(load_trained(str(folder)), load_tokenizer(str(folder)), None)
    assert [task.max_length, TextModel(str(folder)).max_length, exported["max_length"]] == [expected] * 3
    assert task.files(teacher)["sentence_bert_config.json"]["max_seq_length"] == expected
    assert EmbeddingTask(tokenizer, None, None, encoder=str(folder), max_length=24).max_length == 24


def test_labels_of_training_texts_are_not_read(tokenizer):
    rows = Rows("a.csv", [["the king", "of"], ["a city", "in"]], ["high", "low"])
    task = EmbeddingTask(tokenizer, rows, rows._replace(labels=[1, "2"]))
    assert task.train["text"][:] == ["the king", "of", "a city", "in"] and not task.labelled
    assert task.validation["labels"][:] == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "rows,words",
    [
        (Rows("a.csv", [["a"]], [1]), "'a.csv' has single texts: expected pairs"),
        (Rows("a.csv", [["a"], ["b"]], ["alike"]), "row 0 of 'a.csv' has the score 'alike': expected a number"),
        (Rows("a.csv", [["a"], ["b"]], None), "has no labels to score a model by"),
    ],
)
def test_wrong_pairs_are_one_line(tokenizer, rows, words):
    with pytest.raises(UserError, match=words):
        EmbeddingTask(tokenizer, None, rows)


@pytest.mark.parametrize(
    "options,words",
    [
        (["--losses", "{kd: {}}"], "kd compares logits, and the models have none"),
        (["--task_weight", "1"], "task_weight is 1.0 but the training data carries no labels"),
    ],
)
def test_what_needs_logits_or_labels_is_refused(tmp_path, data, options, words):
    with pytest.raises(UserError, match=words):
        run(
            *parse(
                "embed/l3-itrd",
                [*data, *options, "--student.layers", "first:2", "--teacher", str(tmp_path / "teacher")],
            )
        )


def pool_first_tokens(folder):
    """Let a folder say that its embeddings are its first tokens, as those of BGE do."""
    parts = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')


def test_the_student_of_a_teacher_that_pools_first_tokens_does_so_too(tmp_path, data):
    teacher, scored = tmp_path / "teacher", ["--validation_file", str(tmp_path / "sts.csv")]
    pool_first_tokens(teacher)
    words = ["embed/l3-cosine", [*data, "--student.layers", "first:2", "--teacher", str(teacher)]]
    with pytest.raises(UserError, match="whose embeddings are its first token's: add --pooling cls"):
        run(*parse(*words))
    words[1] += ["--pooling", "cls", "--learning_rate", "3e-3"]
    record = run(*parse(*words))
    terms = [step["cosine"] for step in record.terms["student"] if "cosine" in step]
    assert terms[-1] < terms[0] / 2
    folder, text = tmp_path / "out" / "student", "the king of the city"
    assert read_pooling(str(folder)) == "cls"
    for model, expected in ((teacher, "teacher"), (folder, "student")):
        arguments = parse(None, ["--task", "embedding", "--teacher", str(model), *scored, "--use_cpu", "true"])
        assert evaluate_saved(*arguments)["spearman"] == pytest.approx(record.metrics[expected]["spearman"], abs=1e-4)
        plain, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
        with torch.no_grad():
            first = F.normalize(plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0], dim=0)
        np.testing.assert_allclose(TextModel(str(model)).predict_one(text)["embedding"], first, atol=1e-5)


def test_a_student_that_pooled_first_tokens_learns_the_mean_of_another_teacher(tmp_path, tokenizer, data):
    student = tmp_path / "student"
    model = BertModel.from_pretrained(tmp_path / "teacher")
    model.config.sentence_pooling = "cls"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    pool_first_tokens(student)
    words = [*data, "--student", str(student), "--teacher", str(tmp_path / "teacher"), "--max_steps", "1"]
    record = run(*parse("embed/l3-cosine", words))
    assert record.metrics["baseline"]["spearman"] > 99.9  # the teacher's weights, by the teacher's pooling
    saved = str(tmp_path / "out" / "student")
    assert (
        read_pooling(saved) == "mean"
        and AutoModel.from_pretrained(saved).config.to_dict().get("sentence_pooling") is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_exported_encoder_is_scored(tmp_path, data, pooling):
    if pooling == "cls":
        pool_first_tokens(tmp_path / "teacher")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    words = ["--output", str(tmp_path / "onnx"), "--validation_file", str(tmp_path / "sts.csv"), "--max_length", "32"]
    assert main(["export", str(tmp_path / "teacher"), *words, "--disable_tqdm", "true"]) == 0
    rows = json.loads((tmp_path / "onnx" / "export.json").read_text())["rows"]
    assert rows["ONNX fp32"]["metrics"]["spearman"] == pytest.approx(rows["PyTorch fp32"]["metrics"]["spearman"])
    assert (rows["PyTorch fp32"]["metrics"]["spearman"] > 99.9) == (pooling == "mean")  # of which the scores were made
    assert read_pooling(str(tmp_path / "onnx")) == pooling  # its modules.json tells sentence-transformers
    assert OnnxModel(tmp_path / "onnx").outputs == ["last_hidden_state"]  # no pooler, which nobody may have trained
    model = run_onnx.Model(tmp_path / "onnx")
    expected = TextModel(str(tmp_path / "teacher")).predict_one("the king")["embedding"]
    np.testing.assert_allclose(model("the king"), expected, atol=1e-5)


def test_the_cross_score_takes_embeddings_in_the_files_order(tokenizer):
    texts = [["a cat sat", "dogs ran", "ada wrote it and more"], ["it rained", "a", "she wrote the first programme"]]
    task = EmbeddingTask(tokenizer, None, Rows("pairs", texts, labels=[1.0, 5.0, 3.0]))
    assert task.eval_dataset is not None and task.order.tolist() != sorted(task.order)
    queries, documents = np.random.default_rng(0).normal(size=(2, 6, 4))
    numbers = task.in_file_order(np.asarray(task.order))
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    cosines = [q @ d / np.linalg.norm(q) / np.linalg.norm(d) for q, d in zip(queries[:3], documents[3:], strict=True)]
    expected = spearmanr(cosines, [1.0, 5.0, 3.0]).statistic
    assert task.cross_score(queries, documents) == pytest.approx(100 * expected)
