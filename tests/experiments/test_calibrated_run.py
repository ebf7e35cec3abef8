"""A temperature from a run to the student's config, its card, its export and its predictions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import tiny
from cli.test_main import refused
from itrd_nlp import rerank
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.finished import FINISHED, read_finished, renew_files, store_temperature
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.inference.saved_models import load_trained
from itrd_nlp.inference.texts import TextModel, classify
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.training.record import calibration_table
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import first_damage
from itrd_nlp.utils.io import read_json

TEXT = "the king was in the city"


def sharp(folder, tokenizer, **fields):
    """A classifier whose logits are far from zero."""
    torch.manual_seed(0)
    config = tiny.config(layers=2, vocab_size=len(tokenizer), initializer_range=0.3, **fields)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer):
    """A function that makes the same run, its record, its folder and the file of its data."""
    place = tmp_path_factory.mktemp("calibrated")
    words = ("the king", "of the city", "in the house", "is the river", "who was it")
    rows = [f"{a} {b},{'yes' if (i * j) % 3 else 'no'}" for i, a in enumerate(words) for j, b in enumerate(words)]
    (place / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    teacher = sharp(place / "teacher", tokenizer, id2label={0: "no", 1: "yes"})
    argv = ["--task=classification", f"--teacher={teacher}", "--student.layers=first:1", "--max_length=32"]
    argv += [f"--{split}_file={place / 'data.csv'}" for split in ("train", "validation")]
    argv += ["--losses={kd: {}}", "--max_steps=2", "--baseline=false", "--latency=false", "--use_cpu=true"]
    argv += [f"--output_dir={place / 'out'}", f"--shared_dir={place / 'shared'}", "--bf16=false", "--disable_tqdm=true"]

    def again():
        return run(*parse(None, argv), "mine")

    return again, again(), place / "out", place / "data.csv"


def logits(folder, text):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0].double()


def test_the_record_rates_every_model_and_the_students_config_has_its_temperature(finished):
    _, record, output, _ = finished
    assert set(record.calibration) == {"teacher", "student"}
    assert record.calibration == read_json(output / "record.json")["calibration"]
    temperature = record.calibration["student"]["temperature"]
    assert AutoConfig.from_pretrained(output / "student").calibration_temperature == temperature != 1
    before = record.calibration["student"]["before"]
    assert before["accuracy@100"] == pytest.approx(record.metrics["student"]["accuracy"])
    rows = calibration_table(record).rows
    assert [row[0] for row in rows][2:] == ["student, as they are", f"student, temperature {temperature:.3f}"]
    assert rows[2][1] == f"{before['ece']:.2f}"


def test_the_same_run_again_finds_the_student_undamaged(finished, capsys):
    again, record, output, _ = finished
    config, marks = (output / "student" / "config.json").read_bytes(), (output / "student" / FINISHED).read_bytes()
    assert again().calibration == record.calibration
    assert "[student] reusing" in capsys.readouterr().err
    assert (output / "student" / "config.json").read_bytes() == config
    assert (output / "student" / FINISHED).read_bytes() == marks


def test_predictions_are_of_the_logits_over_the_temperature(finished):
    _, record, output, _ = finished
    student = str(output / "student")
    plain, temperature = logits(student, TEXT), record.calibration["student"]["temperature"]
    scores = classify(student, TEXT)["scores"]
    assert [scores["no"], scores["yes"]] == pytest.approx((plain / temperature).softmax(0).tolist(), abs=1e-6)
    assert scores["no"] != pytest.approx(plain.softmax(0)[0].item(), abs=1e-3)


def test_the_card_shows_the_table_and_code_that_divides(finished, monkeypatch, capsys):
    _, record, output, _ = finished
    monkeypatch.chdir(output)
    card = ModelCard.load(output / "student" / "README.md").text
    assert calibration_table(record).markdown() in card and "`calibration_temperature` in `config.json`" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("Ada wrote it in 1843.", TEXT)
    exec(code, {})
    assert eval(capsys.readouterr().out) == pytest.approx(classify("student", TEXT)["scores"], abs=1e-6)


def test_the_command_rates_the_same_model_alike(finished, capsys):
    _, record, output, data = finished
    words = ["--validation_file", str(data), "--max_length=32", "--bf16=false", "--use_cpu=true", "--disable_tqdm=true"]
    capsys.readouterr()
    assert main(["evaluate", str(output / "student"), "--calibrate", *words]) == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") :])
    assert found["calibration"] == record.calibration["student"]  # of the plain logits, whatever the config says
    assert found["accuracy"] == record.metrics["student"]["accuracy"]


def test_it_is_exported_and_the_script_applies_it(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    _, record, output, data = finished
    student, temperature = str(output / "student"), record.calibration["student"]["temperature"]
    words = ["--validation_file", str(data), "--max_length=32", "--use_cpu=true", "--disable_tqdm=true"]
    assert main(["export", student, "--output", str(tmp_path / "onnx"), "--calibrate", "--no_int8", *words]) == 0
    exported = read_json(tmp_path / "onnx" / "export.json")
    assert exported["temperature"] == exported["calibration"]["temperature"] == pytest.approx(temperature)
    assert f"{temperature:.4f}" in (tmp_path / "onnx" / "README.md").read_text()
    done = subprocess.run([sys.executable, tmp_path / "onnx" / "run.py", TEXT], capture_output=True, text=True)
    scores = classify(student, TEXT)["scores"]
    assert json.loads(done.stdout) == pytest.approx(scores, abs=1e-5)
    assert classify(str(tmp_path / "onnx"), TEXT)["scores"] == pytest.approx(scores, abs=1e-5)


def test_a_reranker_with_a_temperature_gives_probabilities_beside_scores(tmp_path, tokenizer):
    folder = sharp(tmp_path, tokenizer, num_labels=1, sentence_transformers={"activation_fn": "torch.nn.Sigmoid"})
    documents = ["the king", "the city"]
    assert [each.probability for each in rerank(folder, "who is it", documents)] == [None, None]
    store_temperature(tmp_path, 2.5)
    for each in rerank(folder, "who is it", documents):
        assert each.probability == pytest.approx(1 / (1 + np.exp(-each.score / 2.5)))
    (result,) = TextModel(folder).predict([["who is it"], ["the king"]])
    assert result["probability"] == pytest.approx(1 / (1 + np.exp(-result["score"] / 2.5)))


@pytest.mark.parametrize("killed_at", [0, 1, 2, None])
def test_a_kill_while_the_config_changes_leaves_no_damage(finished, tmp_path, monkeypatch, killed_at):
    """After none, one or two of its three writes, or all."""
    from itrd_nlp.experiments import finished as module

    folder = shutil.copytree(finished[2] / "student", tmp_path / "student")
    fingerprint, calls = read_json(folder / FINISHED)["fingerprint"], []

    def kills(function):
        def call(*args):
            if len(calls) == killed_at:
                raise KeyboardInterrupt
            calls.append(1)
            return function(*args)

        return call

    monkeypatch.setattr(module, "write_json", kills(module.write_json))
    monkeypatch.setattr(module, "write_atomically", kills(module.write_atomically))
    try:
        store_temperature(folder, 7.5)
    except KeyboardInterrupt:
        assert killed_at is not None
    assert read_finished(folder, fingerprint) is not None
    monkeypatch.undo()
    store_temperature(folder, 7.5)  # again, after which nothing is unchecked
    files = read_json(folder / FINISHED)["files"]
    assert first_damage(folder, files) is None and "config.json" in files  # which `itrd shrink` copies
    if killed_at is None:
        assert json.loads((folder / "config.json").read_text())["calibration_temperature"] == 7.5


def test_a_finished_student_gets_the_tokenizer_of_its_run(finished, tmp_path):
    """Its length may have changed, and the tokens of the training data not, by which the student is reused."""
    folder = Path(shutil.copytree(finished[2] / "student", tmp_path / "student"))
    before = read_json(folder / FINISHED)
    student, tokenizer = load_trained(str(folder)), load_tokenizer(folder)
    task = SimpleNamespace(processor=lambda model: tokenizer, files=lambda model: {})
    renew_files(folder, student, task)
    assert read_json(folder / FINISHED) == before
    tokenizer.model_max_length = 24
    renew_files(folder, student, task)
    files = read_json(folder / FINISHED)["files"]
    assert load_tokenizer(folder).model_max_length == 24
    assert first_damage(folder, files) is None and files.keys() == before["files"].keys()


def test_wrong_uses_are_one_line(finished, tmp_path, capsys, tokenizer):
    _, _, output, data = finished
    student = str(output / "student")
    assert "no data: expected --validation_file" in refused(capsys, "evaluate", student, "--calibrate")
    assert "--calibrate without validation data" in refused(
        capsys, "export", student, "--output", str(tmp_path / "onnx"), "--calibrate"
    )
    (tmp_path / "scores.csv").write_text("text,label\nthe king,0.5\nthe city,2\n")
    regression = sharp(tmp_path / "regression", tokenizer, num_labels=1, problem_type="regression")
    words = ["--validation_file", str(tmp_path / "scores.csv"), "--max_length=32", "--disable_tqdm=true"]
    for command in ("evaluate", "export"):
        assert main([command, regression, "--calibrate", *words]) == 2
        assert "--calibrate with task regression: expected a cl" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "one.csv").write_text("text,label\nthe king,yes\n")
    words[1] = str(tmp_path / "one.csv")
    assert main(["evaluate", student, "--calibrate", *words]) == 2
    assert "expected two validation examples or more" in capsys.readouterr().err.splitlines()[-1]
    store_temperature(output / "teacher", 1.0)  # no folder of a model: nothing to write
    config = json.loads((tmp_path / "regression" / "config.json").read_text())
    for wrong in (0, "hot", -1):
        (tmp_path / "regression" / "config.json").write_text(json.dumps({**config, "calibration_temperature": wrong}))
        with pytest.raises(UserError, match="expected a number above 0"):
            TextModel(regression)
