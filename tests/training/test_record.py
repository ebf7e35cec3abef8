"""Records survive the disk, and a broken one is named."""

import dataclasses

import pytest
import torch

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import write_json


def test_write_and_read_are_inverse(tmp_path):
    made = Record(
        "toy/x", {"losses": {"itrd": {}}}, 3, metrics={"student": {"f1": 1.5}}, **provenance(torch.device("cpu"))
    )
    write_json(tmp_path / "record.json", dataclasses.asdict(made))
    assert Record.read(tmp_path / "record.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "x"}', '{"no": 1}'])
def test_a_broken_record_is_one_line(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="not a record") as error:
        Record.read(tmp_path / "r.json")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        Record.read(tmp_path / "other.json")


def test_records_of_another_teacher_or_data_do_not_mix():
    one = Record("a", {}, 1, digests={"teacher": "x", "student": "s"})
    check_same([one, Record("b", {}, 2, digests={"teacher": "x", "student": "t"})])  # the seed draws a new head
    for digests in ({"teacher": "y", "student": "s"}, {"teacher": "x", "student": "t"}, {}):
        with pytest.raises(UserError, match="were not made with the same"):
            check_same([one, Record("b", {}, 1, digests=digests)])


@pytest.mark.parametrize(
    "name,value",
    [
        ("num_train_epochs", 6),
        ("max_steps", 6),
        ("per_device_train_batch_size", 4),
        ("gradient_accumulation_steps", 2),
        ("tokens_per_batch", 64),
        ("documents_per_query", 4),
        ("bf16", True),
        ("fp16", True),
        ("load_best_model_at_end", True),
        ("world_size", 2),
    ],
)
def test_records_of_another_budget_do_not_mix(name, value):
    digests = {"teacher": "x", "student": "s"}
    both = [Record("a", {}, 1, digests=digests), Record("b", {name: value}, 1, digests=digests)]
    with pytest.raises(UserError, match=f"not made with the same {name}"):
        check_same(both)
    check_same(both, budget=False)
