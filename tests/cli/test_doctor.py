"""What the doctor finds, and that it finds what is wrong."""

import importlib.metadata
import urllib.error
import urllib.request

import pytest
import torch

from itrd_nlp.cli.doctor import Check, examine
from itrd_nlp.cli.main import main


@pytest.fixture
def needed(monkeypatch):
    """The requirements that the package states, as a test sets them."""
    lines = []
    monkeypatch.setattr("itrd_nlp.cli.doctor.requires", lambda name: lines)
    return lines


def test_a_machine_that_works_has_nothing_to_fix(capsys, tmp_path, needed):
    needed += [
        "torch>=2.6",
        'numpy>=99; extra == "plots"',
        'onnx-nowhere>=1; extra == "export"',
        'ruff-nowhere; extra == "dev"',
    ]
    assert main(["doctor", "--output_dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert f"ok    torch: {importlib.metadata.version('torch')}" in out and "nothing to fix" in out
    assert "note  numpy" in out
    assert "pip install 'itrd_nlp[export]'" in out and "ruff-nowhere" not in out
    assert f"torch uses {torch.get_num_threads()}" in out and "offline, as HF_HUB_OFFLINE says" in out
    assert not (tmp_path / "runs").exists()


def test_what_must_be_fixed_says_how_and_fails(capsys, tmp_path, needed):
    needed += ["torch>=99", "accelerate-nowhere>=1.10"]
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--output_dir", str(tmp_path / "file")]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FIX")]
    assert len(lines) == 3
    assert "pip install 'torch>=99'" in lines[0] and "missing" in lines[1] and "--output_dir" in lines[2]


def test_a_full_disk_and_little_memory_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 2**20, "total": 2**30})())
    checks = {check.name: check for check in examine(tmp_path)}
    assert all(checks[name].must for name in ("output folder", "Hub's cache", "teacher cache"))
    assert checks["memory"].advice and not checks["memory"].must


@pytest.mark.parametrize(
    "answer, words, advised",
    [
        (urllib.error.URLError("no route"), "cannot be reached", True),
        (TimeoutError("timed out"), "cannot be reached", True),
        (urllib.error.HTTPError("https://hub", 429, "busy", None, None), "answers with 429", False),
    ],
)
def test_the_hub_is_asked_shortly_and_only_where_that_is_allowed(monkeypatch, tmp_path, answer, words, advised):
    asked = []

    def urlopen(request, timeout):
        asked.append(timeout)
        raise answer

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert "offline" in examine(tmp_path)[-1].found and not asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    check = examine(tmp_path)[-1]
    assert words in check.found and bool(check.advice) == advised and not check.must
    assert len(asked) == 1 and asked[0] < 5


def test_a_check_is_one_line():
    assert str(Check("bf16", "by the hardware")) == "ok    bf16: by the hardware"
    assert str(Check("GPU", "none", "buy one", must=True)) == "FIX   GPU: none -- buy one"
