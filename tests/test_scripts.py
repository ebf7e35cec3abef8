"""The scripts for the owner of a GPU box, at small shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from itrd_nlp.compare import plan_runs

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def call(*words, **environment):
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_dry_reproduction_takes_two_steps_of_each_run_and_continues(tmp_path):
    config = {"model_type": "bert", "hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 12}
    setting = {
        "DRY": "1",
        "DRY_TEACHER": json.dumps({**config, "intermediate_size": 32}),
        "METHODS": "kd minilmv2 crd",
        "STUDENTS": "t3",
        "SEEDS": "0 1",
        "OUTPUT": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    said = call("bash", SCRIPTS / "reproduce_squad.sh", "--disable_tqdm", "true", **setting)
    assert "EFLOP" in said and "A100" in said and "disk:" in said
    assert said.count("[compare]") == 6 and "| MiniLMv2 |" in (tmp_path / "t3.md").read_text()
    records = [json.loads(path.read_text()) for path in tmp_path.glob("t3/*/*/record.json")]
    assert all(record["arguments"]["max_steps"] == 2 and record["terms"]["student"] for record in records)
    again = call("bash", SCRIPTS / "reproduce_squad.sh", "--disable_tqdm", "true", **setting)
    assert "training with" not in again


def test_the_estimate_grows_with_what_is_asked():
    hours = []
    for seeds in ("1", "3"):
        said = call(
            sys.executable, SCRIPTS / "estimate.py", "--students", "t3", "--methods", "kd", "crd", "--seeds", seeds
        )
        (line,) = [line for line in said.splitlines() if "A100" in line]
        hours.append(float(line.split()[1]))
    assert 1.5 < hours[1] / hours[0] < 3


def test_the_plan_of_the_study_names_runs_that_can_be(tmp_path):
    plan = yaml.safe_load((SCRIPTS / "ablation.yaml").read_text())
    points = {" ".join(point.split()) for question in plan["questions"] for point in question["points"].values()}
    runs = [run for point in sorted(points) for run in plan_runs([point], [1], plan["arguments"].split(), tmp_path)]
    assert len({run.record for run in runs}) == len(points)
    assert len({run.training_args.per_device_train_batch_size for run in runs}) == 1
