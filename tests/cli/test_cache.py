"""Cached teacher outputs as `itrd cache` shows and removes them."""

import pytest

from itrd_nlp.cli.main import main
from itrd_nlp.distillation.cache_folders import announce
from itrd_nlp.distillation.folder_locks import lock_in_use


@pytest.fixture
def root(tmp_path):
    """Two folders of cached outputs, and one of somebody else's."""
    for name, size in (("a" * 12, 2**20), ("b" * 12, 3 * 2**20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.safetensors").write_bytes(b"0" * size)
        announce(tmp_path / name, {"layer": size})
    (tmp_path / "mine").mkdir()
    return tmp_path


def test_each_is_shown_with_its_size(root, capsys):
    assert main(["cache", str(root)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"2 in {root}, 4.0 MiB:")
    assert f"| {'a' * 12} | 1.0 MiB | " in told and f"| {'b' * 12} | 3.0 MiB | " in told


def test_all_but_those_in_use_are_removed(root, capsys):
    lock = lock_in_use(root / ("b" * 12))
    assert main(["cache", str(root), "--clear"]) == 0
    told = capsys.readouterr().out
    lock.close()
    assert told.startswith("removed 1, 1.0 MiB") and f"left {root / ('b' * 12)}" in told
    assert sorted(path.name for path in root.iterdir()) == ["b" * 12, "mine"]


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["cache", str(tmp_path / "none")]) == 2
    assert "no such folder; expected one that --teacher_cache named" in capsys.readouterr().err
