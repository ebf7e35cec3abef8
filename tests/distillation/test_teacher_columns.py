"""A teacher's outputs in columns of the training data give the losses of the teacher that they come from."""

import pytest
import torch
from transformers import BertModel

import tiny
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.utils.errors import UserError

LOSSES = {"kd": {"temperature": 3.0}}


def arguments(folder, **changes):
    options = {"losses": LOSSES, "num_train_epochs": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    options |= {"use_cpu": True, "bf16": False, "disable_tqdm": True, "per_device_train_batch_size": 8}
    return ITRDArguments(str(folder), **{**options, "teacher_cache": "off", **changes})


def trainer_of(student, teacher, data, args):
    return ITRDTrainer(model=student, teacher_model=teacher, args=args, train_dataset=data, data_collator=tiny.collate)


def logs(trainer):
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@torch.no_grad()
def outputs(model, data):
    rows = [tiny.collate([row]) for row in data.remove_columns(["labels"] if "labels" in data.column_names else [])]
    return [model(**{k: row[k] for k in ("input_ids", "attention_mask", "token_type_ids")}) for row in rows]


def classifiers(**changes):
    teacher = tiny.bert("classes", seed=1, initializer_range=0.4, **changes).eval()
    return teacher, [tiny.bert("classes", layers=2, seed=2, **changes) for _ in range(2)]


def same_terms(one, other, tolerance=1e-6):
    assert len(one) == len(other) > 2
    for a, b in zip(one, other, strict=True):
        assert {*a} == {*b}
        assert all(a[key] == pytest.approx(b[key], abs=tolerance, rel=tolerance) for key in ("task", "kd") if key in a)


@pytest.mark.parametrize(
    "changes", [{}, {"num_labels": 2, "problem_type": "multi_label_classification"}, {"num_labels": 1}]
)
def test_logits_in_a_column_give_the_losses_of_the_live_teacher(tmp_path, changes):
    data = tiny.rows(24, "classes", labels=not changes)
    args = {"task_weight": 0.0 if changes else 1.0}
    teacher, (live, stored) = classifiers(**changes)
    column = [output.logits[0].tolist() for output in outputs(teacher, data)]
    expected = logs(trainer_of(live, teacher, data, arguments(tmp_path, **args)))
    trainer = trainer_of(stored, None, data.add_column("teacher_logits", column), arguments(tmp_path, **args))
    same_terms(expected, logs(trainer))
    assert trainer.distils and trainer.cache is None and trainer.sources["teacher"] == "outputs in the training data"
    for a, b in zip(live.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("widths,pooling", [((32, 32), "mean"), ((32, 16), "mean"), ((32, 16), "cls")])
def test_embeddings_in_a_column_give_the_losses_of_the_live_teacher(tmp_path, widths, pooling):
    data = tiny.rows(24, labels=False).remove_columns(["special_tokens_mask"])
    torch.manual_seed(0)
    teacher = BertModel(tiny.config(4, widths[0], initializer_range=0.3)).eval()
    students = []
    for _ in range(2):
        torch.manual_seed(1)
        students.append(BertModel(tiny.config(2, widths[1])))
    column = [
        (x.last_hidden_state[0, 0] if pooling == "cls" else x.last_hidden_state[0].mean(0)).tolist()
        for x in outputs(teacher, data)
    ]
    options = {"losses": {"cosine": {}, "itrd": {}, "crd": {"negatives": 4}}, "layer_map": "last", "task_weight": 0.0}
    options["pooling"] = pooling
    expected = logs(trainer_of(students[0], teacher, data, arguments(tmp_path, **options)))
    found = logs(
        trainer_of(students[1], None, data.add_column("teacher_embedding", column), arguments(tmp_path, **options))
    )
    for key in ("cosine", "itrd/correlation", "itrd/mutual_information", "crd"):
        assert found[0][key] == pytest.approx(expected[0][key], rel=1e-6)
        # later, rounding grows: the live teacher sees padded batches, the column was computed text by text
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-4)


@pytest.mark.parametrize("kind", ["streamed", "a list"])
def test_columns_that_no_schema_names_teach_too(tmp_path, kind):
    data, student = tiny.rows(24, "classes").add_column("teacher_logits", [[0.0, 1.0]] * 24), tiny.bert("classes")
    data = data.to_iterable_dataset().map(lambda row: row) if kind == "streamed" else list(data)
    trainer = trainer_of(student, None, data, arguments(tmp_path, losses=LOSSES, task_weight=0, max_steps=3))
    assert trainer.distils
    assert {"kd", "loss"} <= {*logs(trainer)[0]} and "task" not in logs(trainer)[0]


def test_without_losses_or_columns_it_fine_tunes(tmp_path):
    data = tiny.rows(24, "classes")
    student = tiny.bert("classes", layers=1)
    column = data.add_column("teacher_logits", [[0.0, 1.0]] * 24)
    for each, losses in ((data, LOSSES), (column, {})):
        trainer = trainer_of(student, None, each, arguments(tmp_path, losses=losses))
        assert not trainer.distils and "kd" not in logs(trainer)[0] and trainer.sources.get("teacher") is None


@pytest.mark.parametrize(
    "column,changes,words",
    [
        (
            {"teacher_logits": [0.0, 1.0]},
            {"losses": {"itrd": {}}},
            "itrd compares hidden states, of which the data has",
        ),
        ({"teacher_logits": [0.0, 1.0]}, {"losses": {"minilmv2": {}}}, "minilmv2 compares hidden states"),
        ({"teacher_logits": [0.0, 1.0]}, {"losses": {"kdd": {}}}, "loss 'kdd' is not known.*did you mean 'kd'"),
        ({"teacher_logits": [0.0, 1.0, 2.0]}, {}, r"teacher returns \{'logits': \(2, 3\)\}, the student .*\(2, 2\)"),
        (
            {"teacher_embedding": [0.0, 1.0], "teacher_logits": [0.0, 1.0]},
            {"losses": {"cosine": {}}},
            "layer_map 'even' with teacher_embedding in the data: .*expected --layer_map last",
        ),
        (
            {"teacher_embedding": [0.0, 1.0], "teacher_logits": [0.0, 1.0]},
            {"losses": {"cosine": {}}, "layer_map": "last", "pooling": "tokens"},
            "pooling 'tokens' with teacher_embedding",
        ),
        ({"teacher_embedding": [0.0, 1.0]}, {"losses": {"reviewkd": {}}}, "reviewkd compares hidden states"),
    ],
)
def test_what_the_columns_cannot_serve_is_one_line(tmp_path, column, changes, words):
    data = tiny.rows(8, "classes")
    for name, value in column.items():
        data = data.add_column(name, [value] * 8)
    with pytest.raises(UserError, match=words):
        trainer_of(tiny.bert("classes", layers=1), None, data, arguments(tmp_path, **changes))
