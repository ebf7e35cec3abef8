"""Tests of itrd_nlp.experiments.student_spec."""

import pytest

from itrd_nlp.experiments.student_spec import StudentSpec


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({}, StudentSpec("teacher", layers="even:3")),
        ("my/encoder", StudentSpec("my/encoder", as_is=True)),
        ({"from": "my/encoder", "layers": "last:2"}, StudentSpec("my/encoder", layers="last:2")),
        (
            {"layers": [0, 5], "tokenizer": "own", "vocabulary": 8000, "hidden_size": 192},
            StudentSpec(layers=[0, 5], tokenizer="own", vocabulary=8000, fields={"hidden_size": 192}),
        ),
        (
            {"model_type": "bert", "tokenizer": "own", "hidden_size": 64},
            StudentSpec(None, tokenizer="own", fields={"model_type": "bert", "hidden_size": 64}),
        ),
        ({"timm": "resnet18"}, StudentSpec(None, fields={"timm": "resnet18"})),
        # a new model has no source: both keys stay among its fields, where they are refused
        (
            {"model_type": "bert", "from": "teacher", "layers": "first:1"},
            StudentSpec(None, fields={"model_type": "bert", "from": "teacher", "layers": "first:1"}),
        ),
    ],
)
def test_reads_what_the_option_says_and_leaves_it_as_it_is(option, expected):
    given = option if isinstance(option, str) else dict(option)
    assert StudentSpec.read(option) == expected
    assert option == given


def test_only_a_student_that_starts_from_a_folder_or_hub_id_has_one():
    options = ({}, "my/encoder", {"from": "my/encoder"}, {"model_type": "bert"}, "teacher")
    assert [StudentSpec.read(option).folder for option in options] == [
        None,
        "my/encoder",
        "my/encoder",
        None,
        "teacher",
    ]
    assert [StudentSpec.read(option).from_teacher for option in options] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"layers": "first:3"}, "first 3 layers of the teacher"),
        ({"layers": "even:3", "hidden_size": 192}, "3 evenly spaced layers of the teacher, 192 wide"),
        ({"from": "my/encoder", "layers": [0, 5]}, "layers 0, 5 of my/encoder"),
        ("my/encoder", "my/encoder"),
        ({"timm": "resnet18"}, "resnet18"),
        ({"model_type": "bert"}, "a new bert"),
    ],
)
def test_says_in_words_what_a_student_is_made_of(option, words):
    assert str(StudentSpec.read(option)) == words
