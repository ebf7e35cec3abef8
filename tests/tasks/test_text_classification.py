"""Classification: one class, several, a score; from a file to a student that says its classes by name."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    EvalPrediction,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

import tiny
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.intervals import Examples
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.experiments.run import run
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.inference.texts import classify
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask
from itrd_nlp.utils.errors import UserError

WORDS = {"positive": "the king of the city", "negative": "where was the river"}
LABELS = {  # task -> what the label column of a text about the king or about the river holds
    "classification": ("positive", "negative"),
    "multilabel": ("royal|town", "river"),
    "regression": ("0.75", "-0.75"),
}


def write(path, labels, rows=24):
    texts = [f"{list(WORDS.values())[i % 2]} {'in the house ' * (i % 5)}" for i in range(rows)]
    lines = [f"{text},{labels[i % 2]}" if labels else text for i, text in enumerate(texts)]
    path.write_text("\n".join(["text,label" if labels else "text", *lines]) + "\n")
    return str(path)


def arguments(tmp_path, recipe, *argv, **options):
    """Of a short run on the CPU, in ``tmp_path / "out"``."""
    places = {"output_dir": tmp_path / "out", "shared_dir": tmp_path / "kept", "student.layers": "first:2"}
    quick = {"num_train_epochs": 2, "use_cpu": True, "bf16": False, "latency": False, "save_strategy": "no"}
    options = {**places, **quick, "logging_steps": 1, "disable_tqdm": True, **options}
    return parse(recipe, [*argv, *(word for key, value in options.items() for word in (f"--{key}", str(value)))])


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[] if task == "multilabel" else pytest.mark.slow) for task in LABELS]
)
def test_from_a_file_to_a_student_in_one_call(tmp_path, bare, task, monkeypatch):
    file = write(tmp_path / "my.csv", LABELS[task])
    fast = {"num_train_epochs": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 8}
    argv = ["--teacher", bare, "--train_file", file, "--validation_file", file, "--task", task]
    argv += ["--teacher_training", json.dumps(fast), "--teacher_cache", str(tmp_path / "c")]
    learning = {**fast, "baseline": task == "classification"}
    record = run(*arguments(tmp_path, "classify/l3-itrd-kd", *argv, **learning), "mine")
    last = record.metric_names[-1]
    assert record.metrics["teacher"][last] > 85 and record.metrics["student"][last] > 85
    assert record.stored_teacher and {"task", "kd"} <= set(record.terms["student"][-1])
    for role, scores in record.examples.items():
        found = Examples(np.array([scores[last]]), last, []).scores()
        assert found == pytest.approx(record.metrics[role][last])
    assert "| ITRD + KD |" in comparison_table([record]).markdown()
    folder = str(tmp_path / "out" / "student")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    names = {
        "classification": ["negative", "positive"],
        "multilabel": ["river", "royal", "town"],
        "regression": ["score"],
    }
    assert [*config.id2label.values()] == names[task]
    again = arguments(tmp_path, None, "--task", task, "--teacher", folder, "--validation_file", file)
    monkeypatch.setattr(ClassificationTask, "calibration", None)  # slow, and asked for by an option alone
    assert evaluate_saved(*again) == record.metrics["student"]
    said = classify(folder, WORDS["positive"])
    if task == "classification":
        assert said["label"] == "positive" and sum(said["scores"].values()) == pytest.approx(1)
    elif task == "multilabel":
        assert said["labels"] == ["royal", "town"]
    else:
        assert said["score"] > 0.25


def test_scores_are_ordered_by_all_their_digits(tmp_path, tokenizer):
    config = tiny.config(vocab_size=len(tokenizer), num_labels=1, problem_type="regression")
    BertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = "".join(f"the king of the house {'of the city ' * n},{n}\n" for n in range(12))
    (tmp_path / "held.csv").write_text(f"text,label\n{rows}")
    words = ["--teacher", str(tmp_path / "m"), "--task=regression", f"--validation_file={tmp_path}/held.csv"]
    words += ["--max_length=64"]
    exact, half = [evaluate_saved(*parse(None, [*words, "--use_cpu=true", f"--bf16={bf16}"])) for bf16 in (False, True)]
    assert exact == half


def test_a_saved_tokenizer_makes_what_its_model_takes(tokenizer, tmp_path):
    """A larger teacher's may take more tokens, where other libraries would cut texts, and make token types."""
    rows = Rows("r.csv", [["a", "b"]], ["x", "y"], None)
    task = ClassificationTask(tokenizer, rows, rows)
    short, long = [tiny.bert("classes", layers=1, max_position_embeddings=n) for n in (64, 512)]
    assert task.processor(short).model_max_length == 64 and tokenizer.model_max_length == 512
    without_types = DistilBertModel(DistilBertConfig(dim=8, n_heads=2, n_layers=1, hidden_dim=8, vocab_size=40))
    assert "token_type_ids" in tokenizer.model_input_names
    task.processor(without_types).save_pretrained(tmp_path)
    assert [*AutoTokenizer.from_pretrained(tmp_path)("the king")] == ["input_ids", "attention_mask"]
    assert task.processor(long) is tokenizer
    long.config.position_biased_input, tokenizer.model_max_length = False, VERY_LARGE_INTEGER  # as of DeBERTa-v3
    try:
        assert task.processor(long) is tokenizer
    finally:
        tokenizer.model_max_length = 512


def test_predict_prints_what_classify_says(tmp_path, tokenizer, capsys):
    model = BertForSequenceClassification(tiny.config(vocab_size=len(tokenizer), id2label={0: "no", 1: "yes"}))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert main(["predict", str(tmp_path / "m"), "--text", "the king", "--text_pair", "the city"]) == 0
    tokens = tokenizer("the king", "the city", return_tensors="pt")
    expected = model.eval()(**tokens).logits.softmax(1)[0].tolist()
    assert list(json.loads(capsys.readouterr().out)["scores"].values()) == pytest.approx(expected, rel=1e-4)
    assert main(["predict", str(tmp_path / "m"), "--text", " "]) == 2
    assert "the text is ' ': expected text" in capsys.readouterr().err


def test_unlabelled_text_distils_and_needs_no_labels(tmp_path, tokenizer):
    config = tiny.config(
        vocab_size=len(tokenizer), max_position_embeddings=512, id2label={0: "negative", 1: "positive"}
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "ready")
    tokenizer.save_pretrained(tmp_path / "ready")
    files = {"train_file": write(tmp_path / "bare.csv", None), "validation_file": write(tmp_path / "v.csv", ("0", "1"))}
    ready = {"teacher": str(tmp_path / "ready"), "latency": False, **files}
    with pytest.raises(
        UserError, match="task_weight is 1.0 but the training data carries no labels: name their column"
    ):
        run(*arguments(tmp_path, "classify/l3-kd", **ready))
    record = run(*arguments(tmp_path, "classify/l3-kd", task_weight=0, **ready))
    assert set(record.terms["student"][-1]) >= {"kd"} and "task" not in record.terms["student"][-1]
    assert set(record.metrics) == {"teacher", "baseline", "student"} and set(record.seconds) == {"student"}


def test_kd_of_one_number_and_of_several_classes_is_what_its_docstring_says(tmp_path, tokenizer):
    from itrd_nlp.distillation.distiller import build_distiller

    def term(labels, problem_type, temperature):
        teacher, student = [
            tiny.bert("classes", seed=i, num_labels=labels, problem_type=problem_type, initializer_range=0.3)
            for i in range(2)
        ]
        batch = tiny.collate(list(tiny.rows(4, labels=False)))
        distiller, reader = build_distiller(
            student.eval(), teacher.eval(), batch, losses={"kd": {"temperature": temperature}}, task_weight=0
        )
        value = distiller(reader(teacher, batch)[1], **batch)["terms"]["kd"].item()
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        return value, teacher(**inputs).logits, student(**inputs).logits

    value, t, s = term(1, "regression", 8.0)
    assert value == pytest.approx(((t - s) ** 2).mean().item(), rel=1e-4)
    value, t, s = term(3, "multi_label_classification", 2.0)
    p, q = torch.sigmoid(t / 2), torch.sigmoid(s / 2)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert value == pytest.approx(4 * divergence.mean().item(), rel=1e-3, abs=1e-6)


ROWS = Rows("a.csv", [["the king", "the city", "a house"]], ["x", "y", "x"])


@pytest.mark.parametrize(
    "kind,train,validation,words",
    [
        (
            ClassificationTask,
            ROWS,
            ROWS._replace(labels=["x", "z", "x"]),
            "row 1 of 'a.csv' has the label 'z': expected one",
        ),
        (
            ClassificationTask,
            ROWS._replace(texts=[["a", None, "b"]]),
            None,
            "row 1 of 'a.csv': expected text, found None",
        ),
        (MultilabelTask, ROWS, ROWS._replace(labels=["x|y", "", "w"]), "row 2 of 'a.csv' has the label 'w'"),
    ],
)
def test_wrong_labels_are_one_line(tokenizer, kind, train, validation, words):
    with pytest.raises(UserError, match=words) as error:
        kind(tokenizer, train, validation)
    assert "\n" not in str(error.value)


def test_scores_of_texts(tokenizer):
    rows = Rows("", [["the", "the king of the city", "the king"], ["", "in the house", "is"]], ["x", "y", "z"])
    task = ClassificationTask(tokenizer, rows, rows)
    lengths, labels = task.eval_dataset["length"][:], np.array(task.eval_dataset["labels"][:])
    assert lengths == sorted(lengths, reverse=True) and task.class_names == ["x", "y", "z"]
    assert task.eval_dataset["token_type_ids"][0][-1] == 1  # the second text of a pair
    scores, each = task.score(EvalPrediction(np.eye(3)[[1, 1, 1]], labels))
    assert scores["accuracy"] == pytest.approx(100 / 3) and each["accuracy"] == [0, 100, 0]
    assert scores["macro_f1"] == pytest.approx(50 / 3) and scores["matthews"] == 0 and "f1" not in scores


def test_of_two_classes_the_f1_of_the_second_is_scored_too(tokenizer):
    rows = Rows("", [["the king"] * 4], ["no", "yes", "yes", "no"])
    task = ClassificationTask(tokenizer, rows, rows)
    gold = np.array(task.eval_dataset["labels"][:])
    scores = task.compute_metrics(EvalPrediction(np.eye(2)[[1, 1, 1, 1]], gold))
    assert scores["f1"] == pytest.approx(200 / 3) and scores["macro_f1"] == pytest.approx(100 / 3)
    assert task.metric_names == ("matthews", "macro_f1", "f1", "accuracy")
    with pytest.raises(UserError, match="NaN for 4 of 4"):
        task.compute_metrics(EvalPrediction(np.full((4, 2), np.nan), gold))


@pytest.mark.parametrize(
    "options,words",
    [
        ({"n_best": 5}, "n_best 5 with task classification: it is for other tasks"),
        ({"text_pair_column": "b"}, "text_pair_column 'b' alone"),
        ({"max_length": 2}, "max_length 2: expected more than the special tokens"),
        ({"max_length": 1024}, "at most the 512 tokens"),
        ({"teacher": {"model_type": "bert"}}, "add --tokenizer FOLDER"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(tmp_path, bare, options, words):
    file = write(tmp_path / "my.csv", LABELS["classification"])
    run_args, _ = parse("classify/l3-itrd", ["--teacher", bare, "--train_file", file, "--validation_file", file])
    for name, value in options.items():
        setattr(run_args, name, value)
    with pytest.raises(UserError, match=words):
        TASKS["classification"](run_args)


def test_a_teacher_of_other_classes_is_refused(tmp_path, tokenizer):
    model = BertForSequenceClassification(tiny.config(vocab_size=len(tokenizer), num_labels=3))
    model.save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    file = write(tmp_path / "my.csv", LABELS["classification"])
    argv = ["--teacher", str(tmp_path / "three"), "--train_file", file, "--validation_file", file]
    words = "the teacher tells LABEL_0, LABEL_1, LABEL_2 apart, the data names negative.*write the names into id2label"
    with pytest.raises(UserError, match=words):
        run(*arguments(tmp_path, "classify/l3-itrd", *argv))
    scores = write(tmp_path / "scores.csv", LABELS["regression"])
    argv = ["--teacher", str(tmp_path / "three"), "--train_file", scores, "--validation_file", scores]
    with pytest.raises(UserError, match="has a head of 3 outputs, the data asks for 1"):
        run(*arguments(tmp_path, "classify/l3-itrd", *argv, task="regression"))


def test_a_student_whose_head_has_another_order_is_refused(tmp_path, tokenizer):
    """Its outputs would only be called otherwise."""
    for name, classes in (("teacher", ["bad", "good"]), ("student", ["good", "bad"])):
        options = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "id2label": dict(enumerate(classes))}
        BertForSequenceClassification(tiny.config(2, **options)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    file = tmp_path / "my.csv"
    file.write_text("text,label\n" + "the,good\nking,bad\n" * 4)
    files = {"teacher": tmp_path / "teacher", "train_file": file, "validation_file": file}
    files["student.from"] = tmp_path / "student"
    run_args, training_args = arguments(tmp_path, "classify/l3-itrd", **files)
    for student in (run_args.student, str(tmp_path / "student")):
        run_args.student = student
        with pytest.raises(UserError, match="class 0 is 'good' in .*student and 'bad' in the task: expected the same"):
            run(run_args, training_args)


def test_a_student_of_another_model_has_the_task_s_classes_and_the_tokenizer(tmp_path, bare):
    file = tmp_path / "my.csv"
    file.write_text("text,label,more\n" + "the,joy,\nking,grief,\nis,anger,\n" * 4)
    files = {"teacher": bare, "train_file": file, "validation_file": file, "student.from": bare, "max_steps": 1}
    run(*arguments(tmp_path, "classify/l3-itrd", '--teacher_training={"max_steps": 1}', baseline=False, **files))
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert student.config.id2label == {0: "anger", 1: "grief", 2: "joy"} and student.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "student")("the king")["input_ids"]
