"""A disk that is full ends a run in one line; what was there stays whole, and the run goes on once there is room."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from itrd_nlp.cli import main
from itrd_nlp.record import Record
from test_run import SMALL

STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "baseline": False, "latency": False}
pytestmark = [pytest.mark.promise("no room left")]
SLOW = pytest.mark.slow


def distil(folder, room=None):
    """One start of a run in a process of its own, whose files may have so many bytes."""
    words = ["-m", "itrd_nlp.cli", "distill", str(folder / "recipe.yaml"), "--output_dir", str(folder / "out")]
    words += ["--shared_dir", str(folder / "shared"), "--teacher_cache", str(folder / "cache")]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, preexec_fn=limit, env=environment)


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
