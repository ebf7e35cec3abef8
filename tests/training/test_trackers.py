"""Trackers and searches that people bring: each term reaches TensorBoard; Optuna searches over whole runs."""

import json
import sys

import pytest

import tiny
from experiments.test_run import SMALL
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.utils.errors import UserError


def test_tensorboard_gets_each_term_of_each_model(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL))
    places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "shared")]
    record = run(*parse(str(tmp_path / "small.yaml"), [*places, "--report_to", "tensorboard"]))

    def logged(folder):
        (file,) = folder.rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file.parent))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    found = logged(tmp_path / "out" / "student")
    for term in ("loss", "task", "itrd/correlation", "itrd/mutual_information", "kd"):
        expected = [(log["step"], pytest.approx(log[term], rel=1e-5)) for log in record.terms["student"]]
        assert found[f"train/{term}"] == expected and len(expected) == 2
    (undistilled,) = (tmp_path / "shared").glob("undistilled-*")
    assert "train/loss" in logged(undistilled) and "train/kd" not in logged(undistilled)


WANDB = """
from unittest.mock import MagicMock

run, config, calls = None, MagicMock(), []
define_metric = watch = log = termwarn = MagicMock()


def init(**options):
    global run
    run = MagicMock()
    calls.append("init")


def finish():
    global run
    run = None
    calls.append("finish")
"""


def test_each_model_has_a_run_of_wandb_of_its_own_and_scoring_has_none(tmp_path, monkeypatch):
    for folder in ("wandb", "wandb/sdk", "wandb/sdk/lib"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(WANDB if folder == "wandb" else "")
    (tmp_path / "wandb" / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL))
    places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "shared")]
    run(*parse(str(tmp_path / "small.yaml"), [*places, "--report_to", "wandb"]))
    calls = sys.modules["wandb"].calls
    trained = len([*tmp_path.rglob("finished.json")])
    assert trained >= 2 and calls == ["init", "finish"] * trained


def test_several_trackers_are_named_by_a_list(tmp_path):
    names = ["tensorboard", "codecarbon"]
    for words in ("tensorboard,codecarbon", json.dumps(names)):
        assert parse("toy/t1-itrd", ["--report_to", words])[1].report_to == names
    (tmp_path / "small.yaml").write_text(json.dumps({**SMALL, "report_to": names}))
    assert parse(str(tmp_path / "small.yaml"))[1].report_to == names


def test_optuna_searches_over_runs(tmp_path):
    optuna = pytest.importorskip("optuna")
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL))
    tried = []

    def objective(trial):
        beta = trial.suggest_float("beta_corr", 0.1, 10, log=True)
        words = ["--losses.itrd.beta_corr", str(beta), "--baseline", "false"]
        places = ["--output_dir", str(tmp_path / f"trial-{trial.number}"), "--shared_dir", str(tmp_path / "shared")]
        record = run(*parse(str(tmp_path / "small.yaml"), [*words, *places]))
        tried.append(record.arguments["losses"]["itrd"]["beta_corr"])
        return record.metrics["student"]["f1"]

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert tried == [trial.params["beta_corr"] for trial in study.trials] and tried[0] != tried[1]
    assert len(list((tmp_path / "shared").glob("bert-*"))) == 1  # one teacher for all trials


def test_trainer_s_own_search_is_refused_in_one_line(tmp_path):
    arguments = ITRDArguments(str(tmp_path), losses={"itrd": {}}, use_cpu=True)
    trainer = ITRDTrainer(tiny.bert(layers=2), tiny.bert(), arguments, tiny.collate, tiny.rows(32))
    with pytest.raises(UserError, match="itrd sweep") as error:
        trainer.hyperparameter_search(n_trials=2)
    assert "\n" not in str(error.value)
