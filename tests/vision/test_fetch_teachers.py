"""Fetched teachers are unpacked where recipes look for them, and checked."""

import importlib.util
import sys
import tarfile
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from itrd_nlp.experiments.parsing import parse  # noqa: E402
from itrd_nlp.experiments.recipes import recipes  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("fetch_teachers", ROOT / "scripts" / "fetch_teachers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipes_name_what_is_fetched(script):
    named = {str(parse(n)[0].teacher.get("checkpoint")) for n in recipes() if n.startswith(("cifar10/", "cifar100/"))}
    made = {f"teachers/{folder}/{script.CHECKPOINT}" for folder in script.NETWORKS} | {"teachers/cifar10/resnet56.th"}
    assert named == made


def test_an_archive_is_fetched_unpacked_and_checked(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "NETWORKS", {"resnet56_vanilla": "cifar_resnet20"})
    monkeypatch.setattr(script, "FILES", {"cifar10/resnet20": "x.th"})

    def download(url, path):
        checkpoint = tmp_path / "ckpt.pth"
        if url.endswith(".tar"):
            torch.save({"model": timm.create_model("cifar_resnet20").state_dict(), "epoch": 240}, checkpoint)
            with tarfile.open(path, "w") as archive:
                archive.add(checkpoint, "somewhere/resnet56_vanilla/ckpt_epoch_240.pth")
                archive.add(checkpoint, "somewhere/else/ckpt_epoch_240.pth")
        else:
            state = {f"module.{key}": value for key, value in timm.create_model("cifar_resnet20a").state_dict().items()}
            torch.save({"state_dict": state, "best_prec1": 91.7}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(sys, "argv", ["fetch_teachers.py", "--folder", str(tmp_path / "teachers")])
    script.main()
    found = sorted(path.relative_to(tmp_path / "teachers").as_posix() for path in (tmp_path / "teachers").rglob("*.*"))
    assert found == ["cifar10/resnet20.th", "resnet56_vanilla/ckpt_epoch_240.pth"]
    assert "resnet20.th: cifar_resnet20a" in capsys.readouterr().out
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args: pytest.fail("fetched again"))
    script.main()


def test_what_fails_is_one_line(script, tmp_path, monkeypatch):
    def refuse(url, path):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    for words, message in [
        (["resnet57"], "resnet57: expected cifar10, cifar100"),
        (["cifar100"], f"cannot be fetched .*; put it at {tmp_path}/cifar_teachers.tar yourself"),
    ]:
        monkeypatch.setattr(sys, "argv", ["fetch_teachers.py", *words, "--folder", str(tmp_path)])
        with pytest.raises(UserError, match=message) as error:
            script.main()
        assert "\n" not in str(error.value)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "resnet20.th").write_bytes(b"no weights")
    monkeypatch.setattr(sys, "argv", ["fetch_teachers.py", "cifar10/resnet20", "--folder", str(tmp_path)])
    with pytest.raises(UserError, match="not the weights of cifar_resnet20a"):
        script.main()
