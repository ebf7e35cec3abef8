"""Killed at any moment, a run that is started again ends as if nothing had been."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from experiments.test_run import SMALL
from forked import run_script
from itrd_nlp.training.record import Record

CHAINS, KILLS = 4, 5
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
RECIPE = {**SMALL, **STEPS, "teacher_training": STEPS, "pooling": "tokens", "bf16": False}


def started(folder, calls):
    """One start of the run of a folder; of the process, its last line."""
    places = {"output_dir": "out", "shared_dir": "shared", "teacher_cache": "cache"}
    words = [word for name, place in places.items() for word in (f"--{name}", str(folder / place))]
    done = run_script(Path(__file__).with_name("killed.py"), calls, folder / "recipe.yaml", *words)
    return done, (done.stdout.splitlines() or [""])[-1]


def ends(folder):
    """Digest of each model that a run has made, and its scores."""
    models = sorted([*folder.glob("shared/*/model.safetensors"), *folder.glob("out/student/model.safetensors")])
    digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in models}
    record = Record.read(folder / "out" / "record.json")
    return digests, record.metrics, record.examples


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    done, last = started(folder, 0)
    assert done.returncode == 0, done.stderr
    return ends(folder), int(last)


@pytest.mark.slow
@pytest.mark.promise("killed at any moment")
@pytest.mark.parametrize("chain", range(CHAINS))
def test_a_killed_run_ends_as_the_whole_one(tmp_path, whole, chain, record_property):
    expected, calls = whole
    draw, moments = random.Random(chain), []
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    while len(moments) < KILLS:
        done, last = started(tmp_path, draw.randint(1, calls // 2))
        if done.returncode == 0:  # what was left took fewer calls
            assert ends(tmp_path) == expected, moments
            for name in ("out", "shared", "cache"):
                shutil.rmtree(tmp_path / name)
            continue
        assert done.returncode == -9 and last.startswith("killed in"), done.stderr
        moments.append(last)
    done, _ = started(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert ends(tmp_path) == expected, moments
    record_property("cases", len(moments))
