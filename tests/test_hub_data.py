"""Data sets by name."""

import pytest

from itrd_nlp.errors import UserError
from itrd_nlp.hub_data import load_splits


def test_a_folder_of_files_has_its_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    assert load_splits(str(tmp_path))["train"].to_list() == [{"text": "a", "label": "b"}]


def test_one_that_brings_code_or_is_not_there_is_one_line(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('run')\n")
    for name, message in (
        (str(tmp_path / "mine"), "could not be loaded: check its name"),
        ("nobody/nothing", "could not be loaded: check its name"),
        ("glue", "has no namespace: write it as on the Hub, such as 'nyu-mll/glue'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_splits(name, owner="nyu-mll")
        assert "\n" not in str(caught.value)
