"""Records survive the disk, and a broken one is named."""

import dataclasses

import pytest
import torch

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import DamagedError, UserError
from itrd_nlp.utils.io import write_json


def whole():
    numbers = {"metrics": {"student": {"f1": 1.5}}, "metric_names": ["f1"]}
    numbers |= {"parameters": {"student": 3}, "size_mib": {"student": 0.1}}
    return Record("toy/x", {"losses": {"itrd": {}}}, 3, **numbers, **provenance(torch.device("cpu")))


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("metrics", {}, "no metrics"),
        ("metric_names", [], "no metrics"),
        ("metrics", {"student": {"exact_match": 1.0}}, "no f1 of the student"),
        ("parameters", {}, "no parameters of the student"),
        ("size_mib", {"teacher": 1.0}, "no size_mib of the student"),
        ("versions", {"torch": "2"}, "no version of transformers"),
    ],
)
def test_what_tables_show_is_there(tmp_path, name, value, words):
    write_json(tmp_path / "record.json", dataclasses.asdict(dataclasses.replace(whole(), **{name: value})))
    with pytest.raises(DamagedError, match=f"record.json: not a record of a run .it has {words}"):
        Record.read(tmp_path / "record.json")


def test_write_and_read_are_inverse(tmp_path):
    made = whole()
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
