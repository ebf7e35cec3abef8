"""Recipes whose students are chosen by measurement: of layers, and of units."""

import re

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertModel

from experiments.test_run import SMALL, arguments  # noqa: F401
from experiments.test_two_tokenizers import words
from itrd_nlp.experiments.dry_run import dry_run
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.experiments.tasks import build_task
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.students import cut_student
from itrd_nlp.utils.errors import UserError

STUDENT = {"from": "teacher", "layers": "best:2", "hidden_size": 16, "intermediate_size": 20}


def test_a_run_measures_once_its_teacher_is_trained_and_tells_in_the_record(arguments, tmp_path, capsys):  # noqa: F811
    plan = dry_run(*arguments(student=STUDENT))
    assert plan.rows["student"].doing == "trained"
    record = run(*arguments(student=STUDENT))
    lines = record.student_map.splitlines()
    assert lines[0].endswith("2 of 3 layers") and lines[1].startswith(
        "  change of the outputs before training: best:2 "
    )
    assert lines[2:5] == [
        "  hidden units: the 16 most important of 32",
        "  heads of each layer: the 2 most important of 4",
        "  inner units of each layer: the 20 most important of 32",
    ]
    assert record.student_map in capsys.readouterr().err
    student = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "student")
    assert (student.config.hidden_size, student.config.intermediate_size) == (16, 20)
    assert all(row.doing.startswith("reused") for row in dry_run(*arguments(student=STUDENT)).rows.values())
    with pytest.raises(UserError, match="differs in student"):
        dry_run(*arguments(student={**STUDENT, "init": "random"}))


@pytest.mark.parametrize(
    ("student", "told"),
    [
        ({"layers": "best:4"}, 'layers="best:4" must ask for 1 to 3 of 3 layers'),
        ({"layers": "best"}, 'layers="best" must ask for'),
        ({"hidden_size": 20}, "a multiple of 8, the size of a head"),
        ({"hidden_size": 64}, "at most the source's 32"),
        ({"init": "zero"}, "init='zero'"),
        (
            {"calibration": "train"},
            "student has the key 'calibration': expected from, layers, init, vocabulary and config fields",
        ),
    ],
    ids=str,
)
def test_what_a_student_cannot_be_is_told_before_training(arguments, student, told):  # noqa: F811
    with pytest.raises(UserError, match=told) as caught:
        run(*arguments(student=student))
    assert "\n" not in str(caught.value)


def test_it_is_measured_on_the_first_examples_as_the_source_reads_them(tmp_path):
    spec = {"from": "teacher", "layers": "first:2", "tokenizer": "x", "hidden_size": 16}
    argv = words(tmp_path)
    own = str(tmp_path / "student")
    run_args, _ = parse(None, argv)
    run_args.student = {**spec, "tokenizer": own}
    task = build_task(run_args)
    teacher, _ = load_model(run_args.teacher, task.for_teacher, 0)
    student, told = make_student(run_args.student, task, teacher, 0)
    rows = [row["teacher_input_ids"] for row in task.train_dataset]
    batches = [{"input_ids": torch.tensor([ids])} for ids in rows[:128]]  # without padding
    expected, _ = cut_student(teacher, "first:2", hidden_size=16, calibration=batches)
    for key, weight in expected.state_dict().items():
        if "word_embeddings" not in key:
            assert torch.equal(weight, student.state_dict()[key]), key
    assert student.get_input_embeddings().weight.shape == (len(task.tokenizer), 16)
    assert f"pieces of {own}: " in told and "hidden units: the 16 most important of 32" in told
    BertModel(teacher.config).save_pretrained(tmp_path / "bare")  # without a head
    load_tokenizer(str(tmp_path / "teacher")).save_pretrained(tmp_path / "bare")
    bare = {"from": str(tmp_path / "bare"), "layers": "first:2", "tokenizer": own}
    assert re.search(r"qa_outputs +<- new", make_student(bare, task, None, 0)[1])
    with pytest.raises(UserError, match="the training data has no tokens of"):
        make_student({**spec, "from": str(tmp_path / "teacher"), "tokenizer": own}, task, None, 0)
