"""What a label column means: every form that people write, and what is refused."""

import logging
import math

import numpy as np
import pandas
import pytest
from transformers import BertForSequenceClassification, BertForTokenClassification

import tiny
from itrd_nlp.tasks.cells import parse_list
from itrd_nlp.tasks.labels import read_class_sets, read_classes, read_scores, read_tags
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask
from itrd_nlp.tasks.token_classification import TaggingTask
from itrd_nlp.utils.errors import UserError


def rows(labels, declared=None, source="a.csv"):
    return Rows(source, [["the king"] * len(labels)], labels, declared)


def single(labels, known=(), declared=None, validation=None):
    made = read_classes([rows(labels, declared), None if validation is None else rows(validation)], list(known))
    return made.classes, *made.splits[: 1 if validation is None else 2]


@pytest.mark.parametrize(
    "labels,classes,places",
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([" b ", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([10, 9, 9], ["9", "10"], [1, 0, 0]),
        (["1.0", "0.0", ""], ["0", "1"], [1, 0, None]),  # of pandas, after a missing one
        ([1.0, 0.0, math.nan], ["0", "1"], [1, 0, None]),
        ([0.5, 1.0, "1"], ["1", "0.5"], [1, 0, 0]),
        ([True, False, None], ["False", "True"], [1, 0, None]),
        (["True", "false", "True"], ["True", "false"], [0, 1, 0]),
        (["NA", "null", "nan"], ["NA", "nan", "null"], [0, 2, 1]),
        (["[ORG]", "x", "x"], ["[ORG]", "x"], [0, 1, 1]),
        (["007", "7", "7"], ["007", "7"], [0, 1, 1]),
        (["1.10", "1.1", "2"], ["2", "1.1", "1.10"], [2, 1, 0]),
    ],
)
def test_one_class_in_every_form(labels, classes, places):
    found, encoded = single(labels)
    assert {*found} == {*classes} and [None if i is None else found[i] for i in encoded] == [
        None if i is None else classes[i] for i in places
    ]


def test_a_schema_names_the_classes_in_its_order_and_minus_one_is_no_label():
    assert single([1, 0, -1, None], declared=["no", "maybe"]) == (["no", "maybe"], [1, 0, None, None])
    assert single([2, "no", "1"], declared=["no", "maybe", "yes"])[1] == [2, 0, 1]
    assert single([-1, -1], declared=["no", "yes"])[1] is None  # hidden labels
    assert single([0, 1], declared=["no", "yes"], validation=["1", "no", -1])[2] == [1, 0, None]
    assert single([0, 1], known=["yes", "no"], declared=["no", "yes"]) == (["yes", "no"], [1, 0])
    with pytest.raises(UserError, match="row 1 of 'a.csv' has the class 2: expected 0 to 1"):
        single([0, 2], declared=["no", "yes"])


def test_numbers_that_are_names_of_classes_go_by_their_value():
    stars = [f"{i / 2:g}" if i % 2 else f"{i / 2:.1f}" for i in range(1, 11)]  # 0.5, 1.0, ..., 5.0
    assert single(["2.0", "4", 0.5, "5.0"], stars) == (stars, [3, 7, 0, 9])
    assert single(stars)[0] == ["0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"]
    assert single([1, -1, -1]) == (["-1", "1"], [1, 0, 0])
    with pytest.raises(UserError, match="the teacher tells 1.0, 2.0 apart, the data names 0, 1"):
        single([0, 1], ["1.0", "2.0"])


def test_a_teacher_s_classes_go_by_name_number_and_truth():
    known = ["bad", "Good"]
    assert single(["good", "BAD", 0, "1", -1, 1.0], known) == (known, [1, 0, 0, 1, None, 1])
    assert single([True, False], known)[1] == [1, 0]
    made = read_classes([rows([1, 0]), rows(["bad", "good"])], known)
    assert made.notes == [["numbers by the order of the classes: 0 is bad, 1 is Good"], []]
    assert single([5, 6], ["5", "6"])[1] == [0, 1]
    assert single(["-1", "1"], ["-1", "1"])[1] == [0, 1]
    with pytest.raises(UserError, match="the teacher tells bad, Good apart, the data names 2"):
        single([2], known)


def test_a_number_is_a_class_only_where_something_says_which():
    with pytest.raises(UserError, match="row 0 of 'a.csv' has the label '0': expected one of the teacher or the train"):
        single(["bad", "good"], validation=[0, 1])
    with pytest.raises(UserError, match="row 0 of 'a.csv' has the label '0'"):
        single(["1", "2"], validation=["0"])


def test_minus_one_of_a_file_is_a_class_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert single([0, -1, 1, -1]) == (["-1", "0", "1"], [1, 0, 2, 0])
    assert "2 rows have the label '-1': treated as a class" in caplog.text
    with caplog.at_level(logging.WARNING):
        assert single(["x", "nan", "NA"])[0] == ["NA", "nan", "x"]
    assert "1 rows have the label 'nan': treated as a class; leave a cell empty for no label" in caplog.text
    with caplog.at_level(logging.WARNING):
        single(["Good", "good", "bad"])
    assert "classes that differ only in case, such as 'good'" in caplog.text


@pytest.mark.parametrize("several", [["x"], ["x", "y"], [0, 1], "['x', 'y']", '["x"]', "[1 0 3]", ("x",)])
def test_lists_are_for_another_task(several):
    with pytest.raises(UserError, match="row 1 of 'a.csv' has a list of classes, .*: expected one class; .*multilabel"):
        single(["x", several])


def sets(labels, known=(), declared=None, validation=None):
    made = read_class_sets([rows(labels, declared), None if validation is None else rows(validation)], list(known))
    named = [
        None if split is None else [x and {c for c, on in zip(made.classes, x, strict=True) if on} for x in split]
        for split in made.splits
    ]
    return made.classes, *named[: 1 if validation is None else 2]


HOT = [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "labels",
    [
        HOT,
        [[float(x) for x in row] for row in HOT],
        [[bool(x) for x in row] for row in HOT],
        [str(row) for row in HOT],
        [str(np.array(row)) for row in HOT],
        [str(np.array(row, dtype=float)) for row in HOT],
        [str([bool(x) for x in row]) for row in HOT],
        [" ".join(map(str, row)) for row in HOT],
        [",".join(map(str, row)) for row in HOT],
        [[str(x) for x in row] for row in HOT],
        [*HOT[:2], None],
        [*HOT[:2], [0.0, 0.0, 0.0]],
    ],
)
def test_vectors_of_0_and_1_are_a_number_for_each_class(labels):
    expected = [{"1", "2"}, {"0"}, set()]
    assert sets(labels) == (["0", "1", "2"], expected)
    assert sets(labels, known=["a", "b", "c"]) == (["a", "b", "c"], [{"b", "c"}, {"a"}, set()])
    made = read_class_sets([None, rows(labels)], ["a", "b", "c"])
    assert made.splits[0] is None and made.splits[1] == HOT and "a 0 or 1 for each class" in made.notes[1][0]
    with pytest.raises(UserError, match="has vectors of 3 numbers 0 and 1, but the classes are 2: a, b"):
        sets(labels, known=["a", "b"])
    with pytest.raises(UserError, match="has vectors of 3 numbers 0 and 1, but the classes are 3: a, b, c"):
        sets([["a"], ["b", "c"], ["a"]], validation=labels)  # in which order?


def test_numbers_of_classes_and_names_of_a_schema():
    assert sets([[2], [0, 1], []]) == (["0", "1", "2"], [{"2"}, {"0", "1"}, set()])
    assert sets([[2], [0, 1], []], known=["a", "b", "c"])[1] == [{"c"}, {"a", "b"}, set()]
    declared = ["a", "b", "c"]
    assert sets([[0, 1], [1, 0]], declared=declared)[1] == [{"a", "b"}, {"a", "b"}]  # numbers of classes, not vectors
    assert sets([[0, 1], [2], []], declared=declared, validation=[[0.0, 1.0, 1.0]]) == (
        declared,
        [{"a", "b"}, {"c"}, set()],
        [{"b", "c"}],
    )
    assert sets([[-1, -1, -1], [0, 1, 1], [1, 1, 1]])[1] == [None, {"1", "2"}, {"0", "1", "2"}]
    for wrong in ([[0, 1, 1], [0, 1]], [[0, 0.3], [1, 0]], [[2, 2], [0, 1]], [[0, 1, -1], [0, 1, 1]]):
        with pytest.raises(UserError, match="expected names, numbers of classes, each once, or a 0 or 1 for each"):
            sets(wrong)
    for wrong in ([1, None], "[0, nan]", "[null, 1]", ["a", math.nan]):
        with pytest.raises(UserError, match="row 1 of 'a.csv' has the labels .*: expected none of them missing"):
            sets([[0, 1], wrong])


def test_lists_of_names_in_every_form():
    forms = ['["x", "y"]', "['x', 'y']", "['x' 'y']", "('x', 'y')", ["y", "x"], ("x", "y")]
    for text in ("x|y", "x, y", "x;y"):
        classes, found = sets([text, *forms, "y", " y ", ["y"], "", None, [], "[]", math.nan])
        assert classes == ["x", "y"] and found == [{"x", "y"}] * 7 + [{"y"}] * 3 + [set()] * 5
    with pytest.raises(UserError, match="the labels of 'a.csv' hold both ';' and ',': expected one of them between"):
        sets(["Arts, Crafts", "Music;Arts, Crafts"])
    joined = ["Arts, Crafts & Sewing|Toys", "R&amp;D", "Toys"]
    assert sets(joined)[0] == ["Arts, Crafts & Sewing", "R&amp;D", "Toys"]  # one mark is between the names of a file
    assert sets(["a|b"], validation=["a", "b, c"], known=["a", "b", "b, c"])[2] == [{"a"}, {"b, c"}]
    assert sets(["a", [None], [math.nan]], known=["a", "b"])[1] == [{"a"}, None, None]
    for wrong in ("['x' 'y', 'z']", "[x]", "{'x'}", "['x", "array(['x'])", "[['x']]", [["x"]], "['x'\n ... 'y']"):
        with pytest.raises(UserError, match="row 1 of 'a.csv' has the labels .*: expected a (list such as|flat list)"):
            sets(["x|y", wrong])


def test_texts_of_lists_are_what_made_them():
    for items in (["a", "b'c", 'd"e', "f, g", "[h]", ""], [1, 0, 3], [1.5, 0.0], [True, False], ["O"], []):
        assert parse_list(str([*np.array(items)])) == items  # in numpy 2: [np.int64(1), np.int64(0)]
        cells = [str(items), str(np.array(items, dtype=object)) if items else "[]"]
        cells += [pandas.Series(items).to_json(orient="values")]
        for cell in cells:
            assert parse_list(cell) == items, cell
    long = ["B-PER"] * 60
    assert parse_list(str(np.array(long))) == long  # over several lines
    with pytest.raises(ValueError):
        parse_list(str(np.array([0] * 2000)))  # numpy leaves out the middle


def test_scores():
    given = [1, "2.5", " 3 ", None, "", math.nan, np.float64(4)]
    assert read_scores([rows(given), None]) == [[1, 2.5, 3, None, None, None, 4], None]
    assert read_scores([rows([0, 1, -1], ["1", "2"]), rows([-1])]) == [[1, 2, None], [-1]]
    for wrong in ("high", "1,5", "1_0", True, [1], "inf", math.inf):
        with pytest.raises(UserError, match="row 1 of 'a.csv' has the score .*: expected a number"):
            read_scores([rows([1, wrong]), None])
    with pytest.raises(UserError, match="has the score 0"):
        read_scores([rows([0], ["low", "high"]), None])


TAGS = [["B-PER", "O"], ["O", "O"], ["I-PER", "B-LOC"]]
NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
IDS = [[NAMES.index(tag) for tag in row] for row in TAGS]


@pytest.mark.parametrize("form", [list, tuple, str, lambda x: str(np.array(x)), " ".join, lambda x: str(list(x))])
def test_tags_in_every_form(form):
    made = read_tags([rows([form(row) for row in TAGS]), None], [])
    assert [[made.classes[i] for i in row] for row in made.splits[0]] == TAGS
    assert made.classes == ["B-LOC", "B-PER", "I-PER", "O"]


@pytest.mark.parametrize(
    "form", [list, str, lambda x: str(np.array(x)), lambda x: " ".join(map(str, x)), lambda x: [float(i) for i in x]]
)
def test_numbers_of_tags_are_named_or_refused(form):
    given = [form(row) for row in IDS]
    assert read_tags([rows(given, NAMES), None], [])[:2] == (NAMES, [IDS, None])
    assert read_tags([None, rows(given)], NAMES)[:2] == (NAMES, [None, IDS])
    for known in ([], ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"], ["0", "1", "2", "3"]):
        with pytest.raises(UserError, match=r"'a.csv' has numbers as tags \(0, 1, 2, 3\), and nothing names them"):
            read_tags([rows(given), None], known)


def test_tags_without_a_label():
    assert read_tags([rows([[-1, -1], [1, 0], [], None, [-100]], ["O", "X"]), None], [])[1] == [
        [None, [1, 0], None, None, None],
        None,
    ]
    for wrong in ([-100, 1], [None, 1], ["O", ""], [True, 1], [5]):
        with pytest.raises(UserError, match="row 0 of 'a.csv' has the (tag|class) "):
            read_tags([rows([wrong], ["O", "X"]), None], [])
    with pytest.raises(UserError, match="row 1 of 'a.csv' has the tags .*expected a list such as"):
        read_tags([rows(["O", "[O, B-X]"]), None], [])


def test_rows_without_a_label_are_left_out_or_learned_from_the_teacher_alone(tokenizer):
    train, held = rows([0, -1, 1, 1], ["no", "yes"], "train.parquet"), rows(["yes", "", "no"], None, "held.csv")
    task = ClassificationTask(tokenizer, train, held)
    assert task.train["labels"][:] == [0, 1, 1] and task.validation["labels"][:] == [1, 0] and task.labelled
    assert task.describe() == [
        "train.parquet: 4 rows, classification, 2 classes: no, yes; 1 without a label left out",
        "held.csv: 3 rows, classification, 2 classes: no, yes; 1 without a label left out",
    ]
    alone = ClassificationTask(tokenizer, train, held, task_weight=0, eval_count=1)
    assert "labels" not in alone.train.column_names and len(alone.train) == 4 and not alone.labelled
    assert alone.describe() == [
        "train.parquet: 4 rows, classification, no labels; 1 without a label kept, all learn from the teacher alone",
        "held.csv: 3 rows, classification, 2 classes: no, yes; 1 without a label left out; the first 1 used",
    ]
    first = ClassificationTask(tokenizer, rows([0, 1, None], ["no", "yes"]), held, task_weight=0, train_count=2)
    assert first.labelled and first.train["labels"][:] == [0, 1]  # what lacks a label is not used
    scores = RegressionTask(tokenizer, rows([1, None, 3]), rows([2, math.nan]))
    assert scores.train["labels"][:] == [1, 3] and scores.validation["labels"][:] == [2]
    assert scores.describe()[0] == "a.csv: 3 rows, regression, scores from 1 to 3; 1 without a label left out"
    with pytest.raises(UserError, match="'a.csv' has no labels to score a model by"):
        ClassificationTask(tokenizer, train, rows([-1, -1], ["no", "yes"]))


def test_a_head_names_the_classes_of_vectors_and_the_tags_of_numbers(tmp_path, tokenizer):
    names = {0: "money", 1: "sport"}
    BertForSequenceClassification(tiny.config(id2label=names)).save_pretrained(tmp_path / "m")
    task = MultilabelTask(tokenizer, None, rows([[1, 0], [1, 1]]), teacher=str(tmp_path / "m"))
    assert task.class_names == ["money", "sport"] and task.validation["labels"][:] == [[1, 0], [1, 1]]
    assert task.describe() == [
        "a.csv: 2 rows, multilabel, 2 classes: money, sport; a 0 or 1 for each class, in this order"
    ]
    BertForTokenClassification(tiny.config(id2label=dict(enumerate(NAMES)))).save_pretrained(tmp_path / "t")
    held = Rows("b.jsonl", [[["the", "king"]]], [[0, 1]])
    tags = TaggingTask(tokenizer, None, held, teacher=str(tmp_path / "t"))
    assert tags.class_names == NAMES and tags.validation["labels"][:] == [[0, 1]]
    assert tags.describe() == [
        "b.jsonl: 1 rows, tagging, scheme IOB, entities: LOC, PER; numbers by the order of the classes: 0 is O, 1 is "
        "B-PER"
    ]


def test_a_name_in_another_case_must_mean_one_class():
    assert single(["no", "yes"], known=["No", "Yes"])[1] == [0, 1]
    assert single(["rock", "Rock"], known=["Rock", "rock"])[1] == [1, 0]
    with pytest.raises(UserError, match="the teacher tells Rock, rock apart, the data names ROCK"):
        single(["ROCK"], known=["Rock", "rock"])
