"""A teacher's outputs in files of every format: read, refused by row, and trained from in one command."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from datasets import Column, Dataset, Features, List, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

import tiny
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.dry_run import dry_run
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.losses.base import Representation
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.rows import CLASSES as COLUMNS
from itrd_nlp.tasks.rows import Rows, load_rows
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask
from itrd_nlp.utils.errors import UserError

TEXTS = ["the king", "a house", "the river", "in the city"] * 4
LABELS = ["good", "bad", "so", "good"] * 4


def rows(labels=LABELS, **outputs):
    return Rows("a.csv", [TEXTS[: len(next(iter(outputs.values())))]], labels, outputs=outputs)


def task_of(kind, tokenizer, train, validation=None, **options):
    return kind(tokenizer, train, validation, **options)


def column(task):
    return np.array(task.train_dataset["teacher_logits"][:])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("independent", [False, True])
def test_probabilities_of_any_format_give_the_loss_of_the_logits(tmp_path, tokenizer, suffix, independent):
    draw = torch.Generator().manual_seed(0)
    teacher, student = [torch.randn(16, 3, generator=draw) * 3 for _ in range(2)]
    p = (teacher.double().sigmoid() if independent else teacher.double().softmax(1)).tolist()
    cells = [json.dumps(row) for row in p] if suffix == "csv" else p
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS, "teacher_probs": cells})
    path = str(tmp_path / f"soft.{suffix}")
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        frame.to_parquet(path)
    train, _ = load_rows(None, None, path, None, COLUMNS)
    task = (MultilabelTask if independent else ClassificationTask)(tokenizer, train, None)
    assert "teacher's outputs from teacher_probs" in task.describe()[0] and task.class_names == ["bad", "good", "so"]
    batch = task.collator([{k: v for k, v in row.items() if k != "length"} for row in task.train_dataset])
    assert batch["teacher_logits"].shape == (16, 3)
    (loss,) = build_losses({"kd": {"temperature": 4.0}}, Shapes((), (), ("logits",), independent=independent)).values()

    def value(logits):
        ours, theirs = [Representation({"logits": x}, (), None) for x in (student, logits)]
        return loss(ours, theirs, {})["kd"].item()

    assert value(batch["teacher_logits"]) == pytest.approx(value(teacher), abs=1e-6, rel=1e-6)


def test_classes_in_the_first_row_give_the_order(tokenizer):
    logits = [[3.0, 1.0, 2.0]] * 4
    train = rows(LABELS[:4], teacher_logits=logits, teacher_classes=['["so", "bad", "good"]', "", "", ""])
    task = ClassificationTask(tokenizer, train, None)
    assert task.class_names == ["so", "bad", "good"] and column(task)[0].tolist() == [3, 1, 2]
    assert task.train_dataset["labels"][:] == [2, 1, 0, 2]
    other = rows(LABELS[:4], teacher_logits=logits, teacher_classes=[["good", "bad", "so"], None, None, None])
    task = ClassificationTask(tokenizer, train, other)
    assert task.teacher_prediction().predictions[0].tolist() == [2, 1, 3]  # so, bad, good


def test_a_mapping_spreads_the_rest_and_says_so(tokenizer):
    cells = ['{"good": 0.7}', "{'bad': 1.0}", {"so": 0.5, "bad": 0.25, "good": 0.25}, {"Good": 0.4, "so": None}]
    task = ClassificationTask(tokenizer, rows(LABELS[:4], teacher_probs=cells), None)
    p = np.exp(column(task))
    np.testing.assert_allclose(p[:1], [[0.15, 0.7, 0.15]], atol=1e-6)
    np.testing.assert_allclose(p[1:], [[1, 0, 0], [0.25, 0.25, 0.5], [0.3, 0.4, 0.3]], atol=1e-6)
    line = task.describe()[0]
    assert "teacher_probs name some classes in 3 rows, the rest spread evenly over the others" in line
    assert "2 probabilities clipped at 1e-12, so that logits are finite" in line
    assert column(task).min() == pytest.approx(math.log(1e-12))


@pytest.mark.parametrize(
    "kind,labels,words",
    [
        (
            ClassificationTask,
            [0, 1, 2, 1],
            "are numbers: expected the same names, or the classes in the order of",
        ),
        (ClassificationTask, ["1", "g", "b", "s"], "are 1, b, g, s: expected the same names"),
        (MultilabelTask, [[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]], "are numbers: expected"),
    ],
)
def test_labels_that_name_none_of_the_teachers_classes_are_refused(tokenizer, kind, labels, words):
    """Their order is nowhere said: the names are sorted."""
    cells = [{"low": 0.9, "medium": 0.08, "high": 0.02}] * 4
    with pytest.raises(UserError, match=f"names the classes high, low, medium in teacher_probs, the labels .* {words}"):
        kind(tokenizer, rows(labels, teacher_probs=cells), None)
    if kind is ClassificationTask:
        train = rows(["low", "high", "low", "low"], teacher_probs=cells)
        with pytest.raises(UserError, match="are numbers: expected the same names"):
            kind(tokenizer, train, Rows("b.csv", [TEXTS[:4]], [0, 1, 2, 1]))
        ordered = {"teacher_classes": [["low", "medium", "high"], None, None, None]}
        task = kind(tokenizer, rows([0, 1, 2, 1], teacher_probs=cells, **ordered), None)
        assert task.class_names == ["low", "medium", "high"] and task.train_dataset["labels"][:] == [0, 1, 2, 1]


def test_lists_follow_the_order_of_vectors(tokenizer):
    """A number for each class in both."""
    train = rows([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], teacher_logits=[[2.0, -1.0, -3.0]] * 4)
    task = MultilabelTask(tokenizer, train, None)
    assert task.class_names == ["0", "1", "2"] and task.train_dataset["teacher_logits"][0] == [2.0, -1.0, -3.0]


def test_probabilities_as_numpy_prints_them(tokenizer):
    cells = [str({"high": np.float64(0.25), "low": np.float64(0.75)})] * 4
    task = ClassificationTask(tokenizer, rows(["low", "high", "low", "low"], teacher_probs=cells), None)
    assert np.exp(task.train_dataset["teacher_logits"][0]) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    "keys,labels,order",
    [
        (["LABEL_0", "LABEL_1", "LABEL_10", "LABEL_2"], [0, 1, 10, 2], ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_10"]),
        (["-1", "0", "1"], [-1, 0, 1, 0], ["-1", "0", "1"]),
        (["0", "1"], [False, True, True, False], ["0", "1"]),
        (["0", "1", "other"], [0, 1, 0, 1], ["0", "1", "other"]),
    ],
)
def test_numbers_among_the_teachers_classes_are_names(tokenizer, keys, labels, order):
    cells = [dict.fromkeys(keys, 1 / len(keys))] * 4
    if keys[0] == "LABEL_0":
        labels = [0, 1, 2, 3]  # in the order that the names say
    task = ClassificationTask(tokenizer, rows(labels, teacher_probs=cells), None)
    assert task.class_names == order


def test_independent_probabilities_become_finite_logits(tokenizer):
    cells = [{"good": 0.75}, [0.0, 1.0, 0.5], {"bad": 1, "so": 0}, {"good": 0.5, "bad": 0.5, "so": 0.5}]
    labels = [["good"], ["bad", "so"], [], ["so"]]
    task = MultilabelTask(tokenizer, rows(labels, teacher_probs=cells), None)
    assert column(task)[0, 1] == pytest.approx(math.log(3)) and np.isfinite(column(task)).all()
    assert column(task)[1].tolist() == pytest.approx([math.log(1e-12), -math.log(1e-12), 0], rel=1e-4)
    assert "name some classes in 2 rows, the others are 0; " in task.describe()[0]


def test_rows_without_labels_take_their_classes_from_the_teacher(tokenizer):
    cells = [{"good": 0.9, "bad": 0.1}, {"so": 0.5, "bad": 0.5}]
    task = ClassificationTask(tokenizer, rows(None, teacher_probs=cells), None, task_weight=0)
    assert task.class_names == ["bad", "good", "so"] and not task.labelled and len(task.train_dataset) == 2
    with pytest.raises(UserError, match="no labels that name the classes of teacher_logits: expected a list of them"):
        ClassificationTask(tokenizer, rows(None, teacher_logits=[[1.0, 2.0]]), None, task_weight=0)


def test_outputs_follow_their_rows(tokenizer):
    labels = ["good", None, "bad", "so"]
    train = rows(labels, teacher_logits=[[float(i), 0.0, 0.0] for i in range(4)])
    task = ClassificationTask(tokenizer, train, None, train_count=2)
    assert column(task)[:, 0].tolist() == [0, 2]
    live = ClassificationTask(tokenizer, train, None, teacher={"model_type": "bert"})
    assert "teacher_logits" not in live.train_dataset.column_names
    assert "not read: teacher_logits" in live.describe()[0]


def test_embeddings_of_pairs_and_scores(tokenizer):
    pairs = Rows("p.csv", [["the king", "a house"], ["the city", "in"]], [1.0, 3.0])
    vectors = {"teacher_embedding": ["[1, 0]", "[0, 1]"], "teacher_embedding_pair": ["[1.0, 0.5]", "[1, 0]"]}
    pairs = pairs._replace(outputs=vectors)
    task = EmbeddingTask(tokenizer, pairs, pairs)
    assert task.train_dataset["teacher_embedding"][:] == [[1, 0], [0, 1], [1, 0.5], [1, 0]]
    assert "teacher_embedding" not in task.eval_dataset.column_names
    assert task.score(task.teacher_prediction())[0]["spearman"] == pytest.approx(-100)  # cosines 0.9 and 0
    with pytest.raises(UserError, match="pairs of texts, and no column teacher_embedding_pair"):
        EmbeddingTask(tokenizer, pairs._replace(outputs={"teacher_embedding": vectors["teacher_embedding"]}), None)
    task = RegressionTask(tokenizer, rows([1, 2], teacher_score=["0.5", "-2"]), rows([1, 2], teacher_score=[1, 2.5]))
    assert column(task).tolist() == [[0.5], [-2]]
    assert task.score(task.teacher_prediction())[0]["mse"] == pytest.approx(0.125)


BAD = {
    "teacher_logits": [
        (None, "row 1 of 'a.csv' has nothing as teacher_logits: expected a list such as"),
        ("", "row 1 of 'a.csv' has nothing"),
        (math.nan, "row 1 of 'a.csv' has nothing"),
        ([1.0, math.nan, 0.0], "row 1 of 'a.csv' .* expected finite numbers"),
        ("[1, Infinity, 0]", "expected finite numbers"),
        ([1.0, 2.0], r"row 1 of 'a.csv' .* expected 3 numbers \(bad, good, so\), found 2"),
        ([True, 1, 2], "expected finite numbers"),
        ("1 2 3", "row 1 .* expected a list"),
    ],
    "teacher_probs": [
        ([0.5, 0.6, -0.1], "row 1 of 'a.csv' .*expected probabilities from 0 to 1"),
        ([0.5, 0.4, 0.0], r"row 1 of 'a.csv' .*expected a sum of 1 \(within 0.01\), found 0.9"),
        ({"good": 0.8, "bad": 0.4}, "found 1.2"),
        ({"goood": 1.0}, "row 1 .*expected each class once: bad, good, goood, so"),
        ({"good": "much"}, "row 1 .*finite numbers"),
        ({}, "row 1 .*finite numbers"),
        (None, "row 1 of 'a.csv' has nothing as teacher_probs"),
    ],
}


@pytest.mark.parametrize("name,cell,words", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_a_row_that_cannot_be_read_is_named(tokenizer, name, cell, words):
    good = [0.5, 0.25, 0.25] if name == "teacher_logits" else {"good": 0.5}
    train = rows(LABELS[:4], **{name: [good, cell, good, good]})
    if "goood" in words:
        train = train._replace(outputs={**train.outputs, "teacher_classes": [["bad", "good", "so"], *[None] * 3]})
        words = "row 1 .*expected each class once: bad, good, so; did you mean 'good'"
    with pytest.raises(UserError, match=words):
        ClassificationTask(tokenizer, train, None)


def test_other_mistakes_are_one_line(tokenizer):
    logits = [[0.0, 1.0, 2.0]] * 4
    wrong = {
        "has teacher_logits and teacher_probs: expected one": {"teacher_logits": logits, "teacher_probs": logits},
        "row 2 .* as teacher_classes: expected the list of the first row": {
            "teacher_logits": logits,
            "teacher_classes": [["a", "b", "c"], None, ["b", "a", "c"], None],
        },
        "two or more names, each once": {"teacher_logits": logits, "teacher_classes": [["a", "a", "c"], *[None] * 3]},
        "the teacher tells a, b, c apart, the data names bad, good, so": {
            "teacher_logits": logits,
            "teacher_classes": [["a", "b", "c"], *[None] * 3],
        },
    }
    for words, outputs in wrong.items():
        with pytest.raises(UserError, match=words):
            ClassificationTask(tokenizer, rows(LABELS[:4], **outputs), None)
    with pytest.raises(UserError, match="row 1 of 'a.csv' .* expected 1 numbers"):
        RegressionTask(tokenizer, rows([1, 2], teacher_score=[1, [1, 2]]), None)
    with pytest.raises(UserError, match="row 1 of 'a.csv' .* expected 2 numbers .as many as in row 0"):
        EmbeddingTask(tokenizer, rows(None, teacher_embedding=[[1, 2], [1]]), None)


@pytest.mark.parametrize("features", [List(Value("float64")), List(Value("float32"), length=2), List(Value("int32"))])
def test_numbers_of_a_parquet_file_are_read_as_an_array(tmp_path, tokenizer, monkeypatch, features):
    vectors = [[i, -i] for i in range(len(TEXTS))]
    kinds = {"text": Value("string"), "teacher_embedding": features, "teacher_score": Value("float64")}
    columns = {"text": TEXTS, "teacher_embedding": vectors, "teacher_score": [i / 2 for i in range(len(TEXTS))]}
    Dataset.from_dict(columns, features=Features(kinds)).to_parquet(tmp_path / "a.parquet")
    train, _ = load_rows(None, None, str(tmp_path / "a.parquet"), None, COLUMNS)
    assert all(isinstance(cells, Column) for cells in train.outputs.values())  # in the file until they are needed
    monkeypatch.setattr("itrd_nlp.tasks.teacher_files.numbers_in", None)
    task = EmbeddingTask(tokenizer, train, None)
    for data in (task.train, task.train_dataset):
        assert data["teacher_embedding"][:] == vectors
        assert data.features["teacher_embedding"].feature.dtype == "float32"
    assert column(RegressionTask(tokenizer, train, None)).tolist() == [[i / 2] for i in range(len(TEXTS))]
    monkeypatch.setattr(Column, "__getitem__", None)
    EmbeddingTask(tokenizer, train, None, teacher={"model_type": "bert"})  # reads no outputs


@pytest.mark.parametrize(
    "cell,words",
    [([1.0], "expected 2 numbers"), (None, "has nothing"), ([1.0, math.nan], "finite"), ([0, 1e39], "finite")],
)
def test_a_row_of_a_parquet_file_that_cannot_be_read_is_named(tmp_path, tokenizer, cell, words):
    data = {"text": TEXTS[:3], "teacher_embedding": [[1.0, 2.0], cell, [3.0, 4.0]]}
    Dataset.from_dict(data).to_parquet(tmp_path / "a.parquet")
    train, _ = load_rows(None, None, str(tmp_path / "a.parquet"), None, COLUMNS)
    with pytest.raises(UserError, match=f"row 1 of .*a.parquet' .*{words}"):
        EmbeddingTask(tokenizer, train, None)


@pytest.fixture
def student(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = BertModel(tiny.config(2, vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.3))
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    return str(tmp_path / "mine")


def words(tmp_path, recipe, student, train, validation, *more):
    places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "kept"), "--bf16", "false"]
    quick = "--use_cpu true --disable_tqdm true --logging_steps 1 --per_device_train_batch_size 8".split()
    files = ["--train_file", str(train), "--validation_file", str(validation)]
    return [recipe, "--student", student, *files, *places, *quick, "--learning_rate", "3e-3", *more]


def soft_file(path, outputs=True, labels=True):
    lines = []
    for i in range(48):
        good = i % 2 == 0
        row = {"text": f"{'the king' if good else 'a house'} {'in the river ' * (i % 3)}"}
        row |= {"label": "good" if good else "bad"} if labels else {}
        row |= {"teacher_probs": {"good": 0.9} if good else {"bad": 0.8}} if outputs else {}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_from_soft_labels_to_a_student_in_one_command(tmp_path, student, capsys):
    train, held_out = soft_file(tmp_path / "soft.jsonl"), soft_file(tmp_path / "held-out.jsonl")
    command = words(tmp_path, "classify/soft-labels", student, train, held_out, "--num_train_epochs", "8")
    recipe, *argv = command
    plan = dry_run(*parse(recipe, argv))
    assert plan.rows["teacher"].doing == "its outputs are in the training data" and plan.rows["student"].steps == 48
    assert plan.cache == "not used, the teacher's outputs are in the training data"
    assert main(["distill", *command]) == 0
    table = capsys.readouterr().out
    assert "| teacher | 100.00 | 100.00 | 100.00 | 100.00 |  |  |  |  | given |" in table
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["metrics"]["student"]["accuracy"] == 100 and record["stored_teacher"] is None
    assert {"task", "kd"} <= {*record["terms"]["student"][0]} and "kd" not in record["terms"]["baseline"][0]
    assert [*record["latency_ms"]] == ["student"] and "teacher" not in record["parameters"]
    assert "teacher" not in json.loads((tmp_path / "out" / "models.json").read_text())
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert "(teacher: `outputs in the training data`; started from: `mine`)" in card
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert model.config.id2label == {0: "bad", 1: "good"}
    AutoTokenizer.from_pretrained(tmp_path / "out" / "student")


def test_other_soft_labels_are_another_run_with_the_same_baseline(tmp_path, student):
    held_out = soft_file(tmp_path / "held-out.jsonl", outputs=False)
    train = soft_file(tmp_path / "soft.jsonl")
    recipe, *argv = words(
        tmp_path, "classify/soft-labels", student, train, held_out, "--num_train_epochs", "1", "--latency", "false"
    )
    first = run(*parse(recipe, argv))
    assert [*first.metrics] == ["baseline", "student"]  # the validation file has no outputs
    train.write_text(train.read_text().replace("0.9", "0.6"))
    with pytest.raises(UserError, match="holds another run, which differs in teacher:"):
        run(*parse(recipe, argv))
    second = run(*parse(recipe, [*argv, "--overwrite", "true"]))
    assert second.digests["teacher"] != first.digests["teacher"]
    assert second.digests["training data"] == first.digests["training data"]
    assert second.seconds["baseline"] == first.seconds["baseline"]  # reused
    assert second.terms["student"] != first.terms["student"]


def test_embeddings_in_a_file_train_a_student_of_another_width(tmp_path, tokenizer, student):
    draw = np.random.default_rng(0)
    vectors = {text: draw.standard_normal(12).round(3).tolist() for text in {*TEXTS}}
    train, pairs = tmp_path / "texts.jsonl", tmp_path / "pairs.jsonl"
    train.write_text(
        "\n".join(json.dumps({"text": t, "teacher_embedding": v}) for t, v in vectors.items() for _ in "ab")
    )
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join(
            json.dumps({"sentence1": s, "sentence2": t, "score": i + j, "teacher_embedding": vectors[s]}
                       | {"teacher_embedding_pair": vectors[t]})
            for i, s in enumerate(vectors) for j, t in enumerate(vectors)
        )
    )  # fmt: skip
    recipe, *argv = words(tmp_path, "embed/soft-labels", student, train, pairs, "--num_train_epochs", "3")
    record = run(*parse(recipe, argv))
    assert {"teacher", "baseline", "student"} == {*record.metrics} and record.parameters["projectors"] == 33 * 12
    assert record.terms["student"][-1]["cosine"] < record.terms["student"][0]["cosine"]


@pytest.mark.parametrize(
    "changes,message",
    [
        (["--teacher_is", "x"], None),
        (["--task", "squad"], "no teacher: .*task squad .*cannot learn from outputs in a file"),
        (["--task", "tagging"], "no teacher: .*task tagging .*cannot learn from outputs in a file"),
        (["--task", "regression"], "no column teacher_score: expected --teacher FOLDER, or its outputs"),
        (
            ["--student", "{from: teacher}"],
            "no teacher: .*--student FOLDER, because there is no teacher",
        ),
        (["--student", "{model_type: bert}"], "a student built from a config: expected a tokenizer too"),
        (["--losses", "{itrd: {}}"], "itrd compares hidden states"),
    ],
)
def test_what_outputs_in_a_file_cannot_serve_is_one_line(tmp_path, student, changes, message):
    train = soft_file(tmp_path / "soft.jsonl")
    recipe, *argv = words(tmp_path, "classify/soft-labels", student, train, train, *changes)
    if message is None:  # a column whose name is mistyped
        train.write_text(train.read_text().replace("teacher_probs", "teacher_prob"))
        argv, message = argv[:-2], "no column teacher_logits or teacher_probs.*did you mean 'teacher_probs'"
    with pytest.raises(UserError, match=message):
        run(*parse(recipe, argv))
