"""A disk that is full ends a run in one line; what was there stays whole, and the run goes on once there is room."""

import json

import pytest

from experiments.test_run import SMALL
from forked import run_module
from itrd_nlp.cli.main import main
from itrd_nlp.training.record import Record

STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "baseline": False}
pytestmark = [pytest.mark.promise("no room left")]
SLOW = pytest.mark.slow


def distil(folder, room=None):
    """One start of a run in a process of its own, whose files may have so many bytes."""
    words = ["distill", folder / "recipe.yaml", "--output_dir", folder / "out"]
    words += ["--shared_dir", folder / "shared", "--teacher_cache", folder / "cache"]
    return run_module("itrd_nlp.cli", *words, file_limit=room)


@pytest.mark.parametrize("room", [2_000, 60_000, *(pytest.param(n, marks=SLOW) for n in (0, 20_000, 150_000))])
def test_it_is_told_in_one_line_and_the_run_goes_on(tmp_path, room):
    recipe = {**SMALL, **STEPS, "pooling": "tokens", "teacher_training": {"max_steps": 4, "save_steps": 2}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = distil(tmp_path, room)
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.returncode == 2 and last.startswith("itrd: error: "), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    done = distil(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Record.read(tmp_path / "out" / "record.json").metrics["student"]


@pytest.mark.parametrize("place", ["output_dir", "shared_dir"])
@pytest.mark.parametrize("name", ["/proc/itrd", "a file/inside"])
def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, capsys, place, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "recipe.yaml").write_text(json.dumps({**SMALL, **STEPS}))
    places = {"output_dir": "out", "shared_dir": "shared", place: name}
    assert main(["distill", "recipe.yaml", *(f"--{key}={value}" for key, value in places.items())]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"itrd: error: {name}")
    assert (tmp_path / "a file").read_text() == "mine"
