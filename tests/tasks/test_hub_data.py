"""Data sets by name."""

import pytest
from datasets import Dataset, DatasetDict

from itrd_nlp.tasks.tabular import load_splits
from itrd_nlp.utils.errors import UserError


def test_a_folder_of_files_has_its_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    assert load_splits(str(tmp_path))["train"].to_list() == [{"text": "a", "label": "b"}]


def test_one_that_brings_code_or_is_not_there_is_one_line(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('run')\n")
    for name, message in (
        (str(tmp_path / "mine"), "could not be loaded: expected files of rows"),
        ("nobody/nothing", "could not be loaded: check its name"),
        ("glue", "has no namespace: write it as on the Hub, such as 'nyu-mll/glue'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_splits(name, owner="nyu-mll")
        assert "\n" not in str(caught.value)


def test_what_save_to_disk_wrote_has_its_splits(tmp_path):
    made = Dataset.from_dict({"text": ["a"], "label": ["b"]})
    DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "saved")
    assert {name: data.to_list() for name, data in load_splits(str(tmp_path / "saved")).items()} == {
        "train": [{"text": "a", "label": "b"}],
        "test": [{"text": "a", "label": "b"}],
    }
    with pytest.raises(UserError, match="dataset_config 'x' with .*: it holds one data set"):
        load_splits(str(tmp_path / "saved"), "x")
    with pytest.raises(UserError, match="holds one split: give it as --train_file"):
        load_splits(str(tmp_path / "saved" / "train"))
    for name in ("train", "test"):
        (tmp_path / "saved" / name / "state.json").write_text("{")
    with pytest.raises(UserError, match="could not be loaded: expected files of rows"):
        load_splits(str(tmp_path / "saved"))
