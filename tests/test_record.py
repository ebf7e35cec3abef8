"""Records survive the disk, and a broken one is named."""

import dataclasses

import pytest
import torch

from itrd_nlp.errors import UserError
from itrd_nlp.plan import write_json
from itrd_nlp.record import Record, provenance


def test_write_and_read_are_inverse(tmp_path):
    record = Record(
        "toy/x", {"losses": {"itrd": {}}}, 3, metrics={"student": {"f1": 1.5}}, **provenance(torch.device("cpu"))
    )
    write_json(tmp_path / "record.json", dataclasses.asdict(record))
    assert Record.read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_provenance_names_versions_and_device():
    found = provenance(torch.device("cpu"))
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["device"].startswith("cpu: ") and "threads" in found["device"]
    assert found["commit"] is None or len(found["commit"]) == 40


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "x"}', '{"no": 1}'])
def test_a_broken_record_is_one_line(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="not a record") as error:
        Record.read(tmp_path / "r.json")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        Record.read(tmp_path / "other.json")
