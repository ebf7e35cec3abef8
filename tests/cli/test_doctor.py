"""What the doctor reports, and what it says to fix."""

import importlib.metadata
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from itrd_nlp.cli.doctor import Check, disk, hub
from itrd_nlp.cli.main import main


@pytest.fixture
def required(monkeypatch):
    """The requirements that the package states, as a test sets them."""
    lines = []
    monkeypatch.setattr("itrd_nlp.cli.doctor.requires", lambda name: lines)
    return lines


def test_a_machine_that_works_has_nothing_to_fix(capsys, tmp_path, required):
    required += [
        "torch>=2.6",
        'numpy>=99; extra == "plots"',
        'onnx-nowhere>=1; extra == "export"',
        'ruff-nowhere; extra == "dev"',
    ]
    assert main(["doctor", "--output_dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert f"ok    torch: {importlib.metadata.version('torch')}" in out and "nothing to fix" in out
    assert f"note  extra plots: numpy {importlib.metadata.version('numpy')} -- if you need it: pip install" in out
    assert "onnx-nowhere missing" in out and "pip install 'itrd_nlp[export]'" in out and "ruff-nowhere" not in out
    assert f"torch uses {torch.get_num_threads()}" in out and "Hub: offline (HF_HUB_OFFLINE)" in out
    assert not (tmp_path / "runs").exists()


def test_what_must_be_fixed_says_how_and_fails(capsys, tmp_path, required):
    required += ["torch>=99", "accelerate-nowhere>=1.10"]
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--output_dir", str(tmp_path / "file")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FIX")]
    assert len(lines) == 3
    assert "pip install 'torch>=99'" in lines[0] and "missing" in lines[1] and "--output_dir" in lines[2]


def test_a_machine_without_torch_gets_its_report(capsys, required, monkeypatch):
    required += ["torch>=2.6"]
    monkeypatch.setattr("itrd_nlp.utils.environment.installed", lambda name: None)
    monkeypatch.setattr("itrd_nlp.cli.doctor.installed", lambda name: None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FIX   torch: missing -- pip install 'torch>=2.6'" in out and "disk for HF_HOME" in out


def test_a_cache_that_is_not_there_is_refused(capsys, tmp_path):
    assert main(["doctor", "--teacher_cache", f"{tmp_path}/typo"]) == 2
    assert "typo: no such folder; expected one that --teacher_cache named" in capsys.readouterr().err


def test_a_full_disk_is_to_fix(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    check = disk(tmp_path / "new", "--output_dir")
    assert check.must and check.advice == "make room, or name another with --output_dir"


@pytest.mark.parametrize(
    "answer, words",
    [
        (None, "answers"),
        (urllib.error.URLError("no route"), "does not answer"),
        (TimeoutError("timed out"), "does not answer (timed out)"),
        (urllib.error.HTTPError("https://hub", 429, "busy", None, None), "does not answer (HTTP Error 429: busy)"),
    ],
)
def test_the_hub_is_asked_shortly_and_only_where_that_is_allowed(monkeypatch, answer, words):
    timeouts = []

    def urlopen(request, timeout):
        timeouts.append(timeout)
        if answer is not None:
            raise answer
        return Path("/dev/null").open()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert "offline" in hub().value and not timeouts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    check = hub()
    assert words in check.value and bool(check.advice) == (answer is not None) and not check.must
    assert len(timeouts) == 1 and timeouts[0] < 5


def test_a_check_is_one_line():
    assert str(Check("bf16", "by the hardware")) == "ok    bf16: by the hardware"
    assert str(Check("GPU", "none", "buy one", must=True)) == "FIX   GPU: none -- buy one"
