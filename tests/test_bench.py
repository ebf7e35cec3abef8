"""The benchmarks run, and the page is that of their records."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "scripts" / "bench"


def call(name, *words):
    return subprocess.run([sys.executable, BENCH / f"{name}.py", *words], capture_output=True, text=True)


def test_a_step_is_measured_and_ends_in_one_line_of_json():
    done = call("step_cost", "--shapes", "tiny", "--repeats", "2", "--rows", "fine-tuning", "itrd", "kd, live teacher")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"itrd_share", "itrd_extra_mib", "cached_over_finetune", "cached_memory_over_finetune"} <= set(result)
    assert 0 < result["itrd_share"] < 1 and 0 < result["itrd_extra_mib"] < 2
    assert result["cached_over_finetune"] > 0 and result["cached_memory_over_finetune"] > 0
    assert "| kd, live teacher |" in done.stdout


def test_a_row_that_nothing_is_compared_with_is_refused():
    done = call("step_cost", "--rows", "itrd")
    assert done.returncode == 2 and "expected fine-tuning and itrd among them" in done.stderr


def test_the_page_is_that_of_the_records():
    done = call("page", "--check")
    assert done.returncode == 0, done.stderr
