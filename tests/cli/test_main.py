"""The command line as a user meets it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.evaluation import evaluate_saved, with_task
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.recipes import recipes
from itrd_nlp.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CONTEXT = "the king was in the house of the city"
ROWS = [
    {
        "id": "a",
        "question": "who was in the house",
        "context": CONTEXT,
        "answers": {"text": ["the king"], "answer_start": [0]},
    },
    {
        "id": "b",
        "question": "where was the king",
        "context": CONTEXT,
        "answers": {"text": ["the house"], "answer_start": [16]},
    },
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


@pytest.fixture
def folder(tmp_path, tiny_bert, tokenizer):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def refused(capsys, *argv):
    """The one line that a wrong command prints."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("itrd: error: ") and error.count("\n") == 1
    return error


def test_the_help_of_distill_lists_the_arguments_of_a_run(capsys):
    assert main(["distill", "--help"]) == 0
    assert "--teacher_training" in capsys.readouterr().out


def test_recipes_are_listed_by_group(capsys):
    assert main(["recipes"]) == 0
    groups, _, advice = capsys.readouterr().out.strip().partition("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in groups.splitlines()}
    folders = {path.name for path in (ROOT / "itrd_nlp" / "recipes").iterdir() if path.is_dir()}
    assert folders == {*rows} and "itrd recipes WORD" in advice
    for name, (count, example, *about) in rows.items():
        assert int(count) == sum(recipe.startswith(f"{name}/") for recipe in recipes())
        assert example in recipes() and example.startswith(f"{name}/") and len(about) > 2


def test_names_of_recipes_stand_alone_for_scripts(capsys):
    assert main(["recipes", "--names"]) == 0
    assert capsys.readouterr().out.split("\n") == [*recipes(), ""]
    assert main(["recipes", "--names", "squad/t6-v"]) == 0
    assert capsys.readouterr().out == "squad/t6-vkd\n"


def test_score(capsys, tmp_path, data):
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps({"a": "king", "b": "house of"}))
    assert main(["score", "--predictions", str(predictions), "--data", str(data)]) == 0
    assert capsys.readouterr().out.split() == ["exact_match:", "50.000", "f1:", "83.333", "total:", "2"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answers": {"text": ["the king"], "answer_start": [9]}}, ""),
        ({"answers": None, "answer": "the king"}, ""),
        ({"answers": {"text": ["the king"], "answer_start": [0]}, "is_impossible": False}, ""),
        (
            {"answers": ["a queen", "the king"]},
            "1 of 2 questions of '{data}' have an answer that is not in their context",
        ),
        ({"answers": ""}, "1 of 2 questions of '{data}' have an empty answer"),
    ],
)
def test_score_reads_every_form_of_answers_and_warns_of_odd_ones(capsys, tmp_path, data, change, message):
    data.write_text("\n".join(map(json.dumps, [{**ROWS[0], **change}, ROWS[1]])))
    (tmp_path / "p.json").write_text(json.dumps({"a": "king", "b": "house"}))
    assert main(["score", "--predictions", str(tmp_path / "p.json"), "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert f"exact_match: {100 if change['answers'] != '' else 50}" in out and message.format(data=data) in err


def test_the_published_predictions_have_their_published_score(capsys, shared):
    folder = shared / "data" / "squad"
    files = ["--predictions", f"{folder}/bert_predictions_validation.json", "--data", f"{folder}/validation.json"]
    assert main(["score", *files]) == 0
    assert capsys.readouterr().out.split()[:4] == ["exact_match:", "86.938", "f1:", "92.087"]


def test_predict_one_question_and_a_file(capsys, tmp_path, data, folder):
    assert main(["predict", folder, "--question", "who was it", "--context", CONTEXT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == CONTEXT[found["start"] : found["end"]] != ""
    assert main(["predict", folder, "--file", str(data), "--output", str(tmp_path / "p.json")]) == 0
    predictions = json.loads((tmp_path / "p.json").read_text())
    assert set(predictions) == {"a", "b"} and all(text in CONTEXT for text in predictions.values())


def test_evaluate_equals_predict_and_score(capsys, tmp_path, data, folder):
    lengths = ["--max_length", "64", "--doc_stride", "16", "--use_cpu", "true", "--disable_tqdm", "true"]
    assert main(["evaluate", folder, "--task", "squad", "--validation_file", str(data), *lengths]) == 0
    out = capsys.readouterr().out
    metrics = json.loads(out[out.index("{\n") :])
    assert main(["predict", folder, "--file", str(data), "--output", str(tmp_path / "p.json")]) == 0
    assert main(["score", "--predictions", str(tmp_path / "p.json"), "--data", str(data)]) == 0
    scores = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert float(scores["f1"]) == pytest.approx(metrics["f1"], abs=1e-3)


def test_a_reader_that_has_enough_is_no_error():
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m itrd_nlp.cli recipes | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_recipes_are_found_by_a_part_of_their_name(capsys):
    assert main(["recipes", "squad/t3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name in recipes() if "squad/t3" in name]
    sources = {line.split()[0]: line.rpartition("  ")[2].strip() for line in lines}
    assert sources.pop("squad/t3-best") == "first 3 layers of the teacher"
    assert {*sources.values()} == {"first 3 layers of google-bert/bert-base-cased"}
    (textbrewer,) = [re.split("  +", line) for line in lines if "textbrewer" in line]
    assert textbrewer[1:3] == ["TextBrewer", "textbrewer + kd"]
    assert "no recipe's name holds 'nowhere'" in refused(capsys, "recipes", "nowhere")


def test_a_saved_model_says_its_task(tmp_path, tokenizer):
    from transformers import BertForSequenceClassification

    for problem, labels, task in (
        ("single_label_classification", 2, "classification"),
        (None, 1, "regression"),
        ("multi_label_classification", 3, "multilabel"),
    ):
        config = tiny.config(vocab_size=len(tokenizer), problem_type=problem, num_labels=labels)
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        assert with_task(str(tmp_path), []) == ["--task", task]
    tiny.bert().save_pretrained(tmp_path)
    assert with_task(str(tmp_path), ["--seed", "1"]) == ["--seed", "1", "--task", "squad"]
    assert with_task(str(tmp_path), ["--task=toy"]) == ["--task=toy"]
    assert with_task(str(tmp_path / "nowhere"), []) == []
    pytest.importorskip("timm")
    assert with_task("cifar_resnet20a", []) == ["--task", "images"]
    from itrd_nlp.vision.models import load_image_model

    load_image_model("cifar_resnet20a", ["a", "b"], seed=0)[0].save_pretrained(tmp_path / "image")
    assert with_task(str(tmp_path / "image"), []) == ["--task", "images"]


def test_wrong_input_is_one_line(capsys, tmp_path, data, folder):
    """Beside the cases of `test_wrong_inputs`."""
    assert "did you mean 'learning_rate'" in refused(capsys, "distill", "toy/t1-itrd", "--learning_rat", "1")
    assert "--output p.json without --file" in refused(
        capsys, "predict", folder, "--question", "who", "--context", CONTEXT, "--output", "p.json"
    )
    options = ("--question", "who", "--context", CONTEXT, "--null_threshold", "nan")
    assert "null_threshold is nan: expected a number" in refused(capsys, "predict", folder, *options)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text(data.read_text())
    with pytest.raises(UserError, match="no validation data"):  # after the bar of `datasets`
        evaluate_saved(*parse(None, ["--teacher", folder, "--task=squad", f"--dataset={tmp_path / 'hub'}"]))
    assert "expected a YAML file or a packaged recipe" in refused(capsys, "distill")
    assert "no.json: no such file; expected " in refused(
        capsys, "score", "--predictions", "no.json", "--data", str(data)
    )
    (tmp_path / "p.json").write_text("{}")
    (tmp_path / "twice.jsonl").write_text(f"{json.dumps(ROWS[0])}\n" * 2)
    twice = ("score", "--predictions", str(tmp_path / "p.json"), "--data", str(tmp_path / "twice.jsonl"))
    assert "gives the same id to several questions" in refused(capsys, *twice)
    assert "question 1 of 1 is ' ': expected text" in refused(
        capsys, "predict", folder, "--question", " ", "--context", CONTEXT
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    line = refused(capsys, "evaluate", folder, "--validation_file", str(empty))
    assert "holds no questions: expected at least one; add some, or name another file" in line
    line = refused(capsys, "evaluate", folder, "--validation_file", str(tmp_path / "elsewhere.csv"))
    assert "does not exist: check its path" in line
