"""The scripts for the owner of a GPU box, at small shapes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file

from forked import run_script
from itrd_nlp.experiments.compare import plan_runs

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def call(*words, **environment):
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
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
        done = run_script(SCRIPTS / "estimate.py", "--students", "t3", "--methods", "kd", "crd", "--seeds", seeds)
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = [line for line in done.stdout.splitlines() if "A100" in line]
        hours.append(float(line.split()[1]))
    assert 1.5 < hours[1] / hours[0] < 3


def test_the_plan_of_the_study_names_runs_that_can_be(tmp_path):
    plan = yaml.safe_load((SCRIPTS / "ablation.yaml").read_text())
    points = {" ".join(point.split()) for question in plan["questions"] for point in question["points"].values()}
    runs = [run for point in sorted(points) for run in plan_runs([point], [1], plan["arguments"].split(), tmp_path)]
    assert len({run.record for run in runs}) == len(points)
    assert len({run.training_args.per_device_train_batch_size for run in runs}) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    kinds = {"single_gpu": "NO", "cpu": "NO", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type.value == kinds.get(path.stem, "MULTI_GPU")
    words = [word for line in path.read_text().splitlines() if "accelerate launch" in line for word in line.split()]
    assert f"scripts/accelerate/{path.name}" in words
    known = {field.name for field in fields(FullyShardedDataParallelPlugin)}
    assert {key.removeprefix("fsdp_") for key in config.fsdp_config} - {"version"} <= known


def test_accelerate_launches_with_the_configuration_for_cpus():
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
    done = subprocess.run([*words, "-m", "itrd_nlp.cli", "recipes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "toy/t1-itrd" in done.stdout, done.stderr[-2000:]


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    listed = text[text.index("install_requires =") : text.index("[options.packages.find]")]
    bounds = dict(re.findall(r"^    ([a-z]+)>=([\d.]+)", listed, re.MULTILINE))
    pins = dict(re.findall(r"^([a-z]+)==([\d.]+)", (SCRIPTS / "oldest.txt").read_text(), re.MULTILINE))
    assert bounds.keys() == pins.keys()
    assert all(pins[name] == bound or pins[name].startswith(f"{bound}.") for name, bound in bounds.items())
