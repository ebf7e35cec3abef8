"""What a record says of the machine, the libraries and the commit."""

import os
import subprocess

import torch

from itrd_nlp.utils import environment
from itrd_nlp.utils.environment import provenance


def test_provenance_names_versions_and_device():
    found = provenance(torch.device("cpu"))
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["device"].startswith("cpu: ") and "thread" in found["device"]
    assert found["commit"] is None or len(found["commit"]) == 40


def test_gpus_are_counted_by_the_processes_that_compute(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    assert provenance(torch.device("cuda"))["device"] == "1 x A100"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert provenance(torch.device("cuda"))["device"] == "4 x A100"


def test_a_checkout_has_changes_but_for_other_records(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True)

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    package, results = tmp_path / "itrd_nlp", tmp_path / "scripts" / "results" / "bench"
    package.mkdir()
    results.mkdir(parents=True)
    (package / "environment.py").touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    (results / "speed.json").touch()
    made = provenance(torch.device("cpu"))
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert made["dirty"] is False and made["commit"] == head.stdout.strip()
    (package / "new.py").touch()
    assert provenance(torch.device("cpu"))["dirty"] is True
