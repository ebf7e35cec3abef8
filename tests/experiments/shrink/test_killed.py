"""Killed at any moment, a search that is started again ends as if nothing had been."""

import hashlib
import random
from pathlib import Path

import pytest

from experiments.shrink.test_shrink import folder, words  # noqa: F401
from forked import run_script
from itrd_nlp.utils.io import read_json

KILLS = 6


def started(folder, output, calls):  # noqa: F811
    """One start of the search; of the process, its last line."""
    sizes = ["--layers", "1", "2", "--vocabularies=150", "--hidden_sizes=16"]
    argv = words(folder, output, *sizes, "--keep=0.9", f"--test_file={folder / 'test.csv'}")
    done = run_script(Path(__file__).parents[1] / "killed.py", calls, "shrink", *argv)
    return done, (done.stdout.splitlines() or [""])[-1]


def ends(output):
    """What a search decides: all but times."""
    record = read_json(output / "frontier.json")
    rows = [
        {key: row[key] for key in ("name", "mib", "early", "score", "kept", "note")} for row in record["candidates"]
    ]
    weights = hashlib.sha256((output / "student" / "model.safetensors").read_bytes()).hexdigest()
    scores = [record["teacher"]["score"], record["teacher"]["int8"]["score"], record["test"]["score"]]
    return record["chosen"], record["met"], scores, rows, weights


@pytest.mark.slow
@pytest.mark.promise("killed at any moment")
def test_a_killed_search_ends_as_the_whole_one(folder, tmp_path, record_property):  # noqa: F811
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    done, last = started(folder, tmp_path / "whole", 0)
    assert done.returncode == 0, done.stderr
    draw, moments = random.Random(0), []
    while len(moments) < KILLS:
        done, moment = started(folder, tmp_path / "out", draw.randint(1, int(last) // 3))
        if done.returncode == 0:  # what was left took fewer calls
            break
        assert done.returncode == -9 and moment.startswith("killed in"), done.stderr
        moments.append(moment)
    assert moments
    done, _ = started(folder, tmp_path / "out", 0)
    assert done.returncode == 0, done.stderr
    assert ends(tmp_path / "out") == ends(tmp_path / "whole"), moments
    record_property("cases", len(moments))
