"""What people bring, as one table: each task, each form of file, each form of label; right, or refused in one line.

Expected values stand in the tables or are computed here; files are written by csv, json, pandas and `datasets`.
"""

import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import BertForSequenceClassification, BertForTokenClassification

import tiny
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.utils.errors import UserError

TEXTS = ["NA", "the king", "null", "007", "a, b;c", 'said "no"', "nan", "the\nriver"]


class Form(NamedTuple):
    """Labels as somebody writes them, and what they say.

    Attributes:
        cells: of the label column.
        expected: what each row says, None where nothing; or the words of a refusal.
        declared: classes that the schema names; only for what has one.
        known: classes of a teacher's head.
        formats: what can hold them; None: all.
    """

    cells: list[Any]
    expected: list[Any] | str
    declared: list[str] | None = None
    known: list[str] | None = None
    formats: tuple[str, ...] | None = None


JSONS, TYPED = ("json", "jsonl"), ("parquet", "arrow", "hub")
FREE = ("csv", "tsv", "hub csv", *JSONS)  # where cells of one column may differ in kind
ALL = (*FREE, *TYPED)
TEXT_FORMS = ("csv", "tsv", "hub csv")

NAMES = ["no", "yes", "maybe"]
PLACES = [0, 1, 2, 1]
BY_NAME = [NAMES[i] for i in PLACES]
CLASSIFICATION = {
    "names": Form(BY_NAME, BY_NAME),
    "names with blanks": Form(["no", " yes", "maybe ", "\tyes"], BY_NAME),
    "names in another case than the head's": Form(["No", "YES", "maybe", "Yes"], BY_NAME, known=NAMES),
    "numbers": Form(PLACES, ["0", "1", "2", "1"]),
    "numbers as texts": Form(["0", "1", "2", "1"], ["0", "1", "2", "1"]),
    "numbers as floats": Form([0.0, 1.0, 2.0, 1.0], ["0", "1", "2", "1"]),
    "numbers of a head": Form(PLACES, BY_NAME, known=NAMES),
    "floats of a head": Form([0.0, 1.0, 2.0, 1.0], BY_NAME, known=NAMES),
    "numbers beyond a head's": Form([1, 2, 3, 1], "the teacher tells no, yes, maybe apart", known=NAMES),
    "names that a head lacks": Form(["no", "yes", "other", "yes"], "the teacher tells no, yes, maybe", known=NAMES),
    "numbers with names in the schema": Form(PLACES, BY_NAME, declared=NAMES, formats=TYPED),
    "a schema and a head of another order": Form(PLACES, BY_NAME, declared=NAMES, known=NAMES[::-1], formats=TYPED),
    "-1 of a schema": Form([0, -1, 2, 1], ["no", None, "maybe", "yes"], declared=NAMES, formats=TYPED),
    "-1 beside a head": Form([0, -1, 2, 1], ["no", None, "maybe", "yes"], known=NAMES),
    "-1 of a file": Form([0, -1, 2, 1], ["0", "-1", "2", "1"]),
    "missing names": Form(["no", None, "maybe", "yes"], ["no", None, "maybe", "yes"]),
    "missing numbers": Form([0.0, None, 2.0, 1.0], ["0", None, "2", "1"]),
    "NaN": Form([0.0, math.nan, 2.0, 1.0], ["0", None, "2", "1"], formats=(*JSONS, *TYPED)),
    "empty names": Form(["no", "", "maybe", "yes"], ["no", None, "maybe", "yes"]),
    "booleans": Form([True, False, False, True], ["True", "False", "False", "True"]),
    "booleans of a head": Form([True, False, False, True], ["yes", "no", "no", "yes"], known=NAMES[:2]),
    "NA and null as names": Form(["NA", "null", "None", "NA"], ["NA", "null", "None", "NA"]),
    "names and numbers in one file": Form(["no", 1, "maybe", 1], BY_NAME, known=NAMES, formats=FREE),
    "half stars": Form([0.5, 1.5, 2.0, 1.5], ["0.5", "1.5", "2", "1.5"]),
    "lists of one": Form([["no"], ["yes"], ["maybe"], ["yes"]], "a list of classes"),
    "lists of several": Form([["no"], ["yes", "no"], ["maybe"], []], "a list of classes"),
    "one-hot vectors": Form([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], "a list of classes"),
    "lists as text": Form(["['no']", "['yes', 'no']", "['maybe']", "[]"], "a list of classes"),
    "objects": Form([{"name": "no"}] * 4, "expected a name or a number", formats=JSONS),
    "one class alone": Form(["no"] * 4, "names 1 classes"),
    "no label at all": Form([None] * 4, "names 0 classes", formats=FREE),
    "no label at all beside a head": Form([None] * 4, "has no labels to score a model by", known=NAMES, formats=FREE),
}
SETS = [{"no"}, {"yes", "no"}, set(), {"maybe"}]
HOT = [[1.0 * (name in some) for name in NAMES] for some in SETS]
IDS = [sorted(map(NAMES.index, some)) for some in SETS]
LISTED = [sorted(some) for some in SETS]
BY_NUMBER = [{str(i) for i in ids} for ids in IDS]
MULTILABEL = {
    "lists of names": Form(LISTED, SETS),
    "names with | between": Form(["|".join(names) for names in LISTED], SETS),
    "names with commas": Form([", ".join(names) for names in LISTED], SETS),
    "lists as JSON": Form([json.dumps(names) for names in LISTED], SETS),
    "lists as Python prints them": Form([str(names) for names in LISTED], SETS),
    "lists as numpy prints them": Form([str(np.array(names, dtype=object)) for names in LISTED], SETS),
    "lists as pandas writes arrays": Form([np.array(names) for names in LISTED], SETS, formats=TEXT_FORMS),
    "brackets that do not parse": Form(["['no'", "['yes' 'no', 'x']", "[]", "['maybe']"], "expected a list such as"),
    "vectors of integers": Form([list(map(int, row)) for row in HOT], BY_NUMBER),
    "vectors of floats": Form(HOT, BY_NUMBER),
    "vectors of booleans": Form([list(map(bool, row)) for row in HOT], BY_NUMBER),
    "vectors as numpy prints them": Form([str(np.array(row, dtype=int)) for row in HOT], BY_NUMBER),
    "vectors of a head": Form(HOT, SETS, known=NAMES),
    "integers of a head": Form([list(map(int, row)) for row in HOT], SETS, known=NAMES),
    "vectors longer than a head": Form(HOT, "has vectors of 3 numbers 0 and 1, but the classes", known=NAMES[:2]),
    "vectors without a label": Form([[-1.0] * 3, *HOT[1:]], [None, *BY_NUMBER[1:]]),
    "vectors of two lengths": Form([[1, 0, 0], [1, 1], [0, 0, 0], [0, 0, 1]], "expected names, numbers of classes"),
    "chances": Form([[0.5, 0.2, 0.0], *HOT[1:]], "expected names, numbers of classes"),
    "numbers of classes": Form(IDS, BY_NUMBER),
    "numbers of a head's classes": Form(IDS, SETS, known=NAMES),
    "numbers with names in the schema": Form(IDS, SETS, declared=NAMES, formats=TYPED),
    "a name that a head lacks": Form([["no"], ["other"], [], ["maybe"]], "the teacher tells no, yes", known=NAMES),
    "missing": Form([None, ["yes", "no"], None, ["maybe"]], [set(), {"yes", "no"}, set(), {"maybe"}]),
    "one name a row": Form(["no", "yes", "", "maybe"], [{"no"}, {"yes"}, set(), {"maybe"}]),
}
NUMBERS = [0.5, 3.0, -1.0, 2.0]
REGRESSION = {
    "floats": Form(NUMBERS, NUMBERS),
    "integers": Form([1, 3, -1, 2], [1.0, 3.0, -1.0, 2.0]),
    "as texts": Form(["0.5", " 3", "-1e0", "2.0"], NUMBERS),
    "missing": Form([0.5, None, -1.0, 2.0], [0.5, None, -1.0, 2.0]),
    "NaN": Form([0.5, math.nan, -1.0, 2.0], [0.5, None, -1.0, 2.0], formats=(*JSONS, *TYPED)),
    "empty": Form(["0.5", "", "-1", "2"], [0.5, None, -1.0, 2.0]),
    "decimal commas": Form(["0,5", "3", "1", "2"], "has the score '0,5': expected a number"),
    "words": Form(["high", "low", "low", "low"], "has the score 'high': expected a number"),
    "booleans": Form([True, False, True, True], "expected a number"),
    "infinite": Form([0.5, math.inf, -1.0, 2.0], "has the score .*inf.*: expected a number"),
    "lists": Form([[0.5], [3.0], [1.0], [2.0]], "expected a number"),
    "stars of a schema": Form([0, 1, -1, 2], [1.0, 2.0, None, 3.0], declared=["1", "2", "3"], formats=TYPED),
    "names of a schema": Form([0, 1, 1, 0], "expected a number", declared=["low", "high"], formats=TYPED),
}
WORDS = [["Ada", "of", "London"], ["NA"], ["null", "said"], ["the", "New", "York", "Times"]]
TAG_NAMES = ["O", "B-PER", "B-LOC", "B-ORG", "I-ORG"]
TAGS = [["B-PER", "O", "B-LOC"], ["O"], ["O", "O"], ["O", "B-ORG", "I-ORG", "I-ORG"]]
SPANS = [{("PER", 0, 1), ("LOC", 2, 3)}, set(), set(), {("ORG", 1, 4)}]
ONE_TYPE = [{("entity", start, end) for _, start, end in spans} for spans in SPANS]
TAG_IDS = [[TAG_NAMES.index(tag) for tag in row] for row in TAGS]


def renamed(change: Callable[[str], str]) -> list[list[str]]:
    return [[change(tag) for tag in row] for row in TAGS]


def ending(last: str, alone: str, inside: str = "I") -> list[list[str]]:
    """The same entities with letters for the last word and for a word alone."""
    rows = [[f"{alone}-PER", "O", f"{alone}-LOC"], ["O"], ["O", "O"]]
    return [*rows, ["O", "B-ORG", f"{inside}-ORG", f"{last}-ORG"]]


TAGGING = {
    "lists": Form(TAGS, SPANS),
    "texts": Form([" ".join(row) for row in TAGS], SPANS),
    "lists as JSON": Form([json.dumps(row) for row in TAGS], SPANS),
    "lists as Python prints them": Form([str(row) for row in TAGS], SPANS),
    "lists as numpy prints them": Form([str(np.array(row)) for row in TAGS], SPANS),
    "brackets that do not parse": Form(["[B-PER, O, B-LOC]", "[O]", "[O, O]", "[O]"], "expected a list such as"),
    "numbers": Form(TAG_IDS, "has numbers as tags .* nothing names them"),
    "numbers as numpy prints them": Form([str(np.array(row)) for row in TAG_IDS], "has numbers as tags"),
    "numbers as text": Form([" ".join(map(str, row)) for row in TAG_IDS], "has numbers as tags"),
    "numbers of a head": Form(TAG_IDS, SPANS, known=TAG_NAMES),
    "numbers of a head as Python prints them": Form([str(row) for row in TAG_IDS], SPANS, known=TAG_NAMES),
    "numbers of a head without names": Form(TAG_IDS, "has numbers as tags", known=[f"LABEL_{i}" for i in range(5)]),
    "numbers with names in the schema": Form(TAG_IDS, SPANS, declared=TAG_NAMES, formats=TYPED),
    "a sentence without tags": Form([TAGS[0], None, TAGS[2], TAGS[3]], [SPANS[0], None, *SPANS[2:]]),
    "-100 of a schema": Form([TAG_IDS[0], [-100], *TAG_IDS[2:]], [SPANS[0], None, *SPANS[2:]], TAG_NAMES, None, TYPED),
    "-100 for one word": Form([TAG_IDS[0], [0], [-100, 0], TAG_IDS[3]], "has the tag -100", TAG_NAMES, None, TYPED),
    "fewer tags than words": Form([TAGS[0][:2], *TAGS[1:]], "row 0 of .* has 3 words and 2 tags"),
    "underscores": Form(renamed(lambda tag: tag.replace("-", "_")), SPANS),
    "suffixes": Form(renamed(lambda tag: "-".join(tag.split("-")[::-1])), SPANS),
    "small letters": Form(renamed(lambda tag: tag[0].lower() + tag[1:]), SPANS),
    "outside as _": Form(renamed(lambda tag: "_" if tag == "O" else tag), SPANS),
    "IOBES": Form(ending("E", "S"), SPANS),
    "BILOU": Form(ending("L", "U"), SPANS),
    "BMEWO": Form(ending("E", "W", "M"), SPANS),
    "IOB1": Form(renamed(lambda tag: tag.replace("B-", "I-")), SPANS),
    "letters alone": Form(renamed(lambda tag: tag[0]), ONE_TYPE),
    "two schemes": Form([*ending("E", "U")[:3], ending("E", "U")[3]], "have the letters B, E, I, U"),
    "a tag of no scheme": Form([["B-PER", "X", "B-LOC"], *TAGS[1:]], "'B-.*' and 'X': expected one scheme"),
}
PARTS_OF_SPEECH = renamed(lambda tag: {"O": "NOUN"}.get(tag, "VERB"))
WORD_BY_WORD = [{(tag, i, i + 1) for i, tag in enumerate(row)} for row in PARTS_OF_SPEECH]
TAGGING["parts of speech"] = Form(PARTS_OF_SPEECH, WORD_BY_WORD)
EMBEDDING = {name: form for name, form in REGRESSION.items() if not form.declared}
FORMS = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "regression": REGRESSION,
    "tagging": TAGGING,
    "embedding": EMBEDDING,
}


def cases() -> Iterator[Any]:
    for task, forms in FORMS.items():
        for name, form in forms.items():
            for kind in form.formats or ALL:
                if kind not in TYPED or typed(form.cells, form.declared) is not None:
                    yield pytest.param(task, form, kind, id=f"{task}-{name}-{kind}")


def typed(cells: list[Any], declared: list[str] | None) -> Any:
    """The type of a column of `datasets` that holds all cells; None: there is none."""
    items = [item for cell in cells for item in (cell if isinstance(cell, list) else [cell]) if item is not None]
    kinds, names = {type(item) for item in items}, {str: "string", int: "int64", float: "float64", bool: "bool"}
    if len(kinds) != 1 or not kinds <= {*names} or len({isinstance(x, list) for x in cells if x is not None}) > 1:
        return None
    kind = ClassLabel(names=declared) if declared else Value(names[kinds.pop()])
    return List(kind) if any(isinstance(cell, list) for cell in cells) else kind


def write(folder: Path, columns: dict[str, list[Any]], kind: str, declared: list[str] | None, label: str) -> list[str]:
    """Write a table for training and for validation; the words of the command line that name it."""
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if kind in TYPED:
        features = {name: typed(values, declared if name == label else None) for name, values in columns.items()}
        data = Dataset.from_dict(columns, features=Features(features))
        if kind == "arrow":
            DatasetDict({"train": data, "validation": data}).save_to_disk(folder / "saved")
            return [f"--dataset={folder / 'saved'}"]
        if kind == "hub":
            for split in ("train", "validation"):
                data.to_parquet(folder / "ds" / "data" / f"{split}-00000-of-00001.parquet")
            return [f"--dataset={folder / 'ds'}"]
        data.to_parquet(folder / "a.parquet")
        return [f"--train_file={folder / 'a.parquet'}", f"--validation_file={folder / 'a.parquet'}"]
    if kind == "hub csv":
        for split in ("train", "validation"):
            write_csv(folder / "ds" / f"{split}.csv", rows, ",")
        return [f"--dataset={folder / 'ds'}"]
    path = folder / f"a.{kind}"
    if kind in JSONS:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        write_csv(path, rows, "\t" if kind == "tsv" else ",")
    return [f"--train_file={path}", f"--validation_file={path}"]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, tokenizer):
    """Folders with a tokenizer, and, where classes are given, the head that names them."""
    made: dict[Any, Path] = {}

    def folder_of(task: str, known: list[str] | None) -> str:
        key = (task == "tagging", *(known or ()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("teacher")
            tokenizer.save_pretrained(made[key])
            kind = BertForTokenClassification if task == "tagging" else BertForSequenceClassification
            if known:
                config = tiny.config(id2label=dict(enumerate(known)), architectures=[kind.__name__])
                config.save_pretrained(made[key])
        return str(made[key])

    return folder_of


def said(task: Any, kind: str) -> list[Any]:
    """What a task's validation rows say, in the words of the table, by the task's own classes."""
    from itrd_nlp.tasks.tag_schemes import entities

    values = task.validation["labels"][:]
    if kind == "embedding":
        return values[: len(values) // 2]
    if kind == "regression":
        return values
    if kind == "classification":
        return [task.class_names[i] for i in values]
    if kind == "multilabel":
        return [{name for name, on in zip(task.class_names, row, strict=True) if on} for row in values]
    return [entities([task.entity_tags[i] for i in row]) for row in values]


def check(folder: Path, teachers: Any, kind: str, form: Form, written: str) -> None:
    """Read a table by its task: what it says is what the form says, or it is refused in the form's words."""
    count, label = len(form.cells), "tags" if kind == "tagging" else "label"
    texts = [TEXTS[i % len(TEXTS)] for i in range(count)]
    columns: dict[str, list[Any]] = {"text": texts, label: form.cells}
    if kind == "embedding":
        columns = {"sentence1": texts, "sentence2": texts[::-1], label: form.cells}
    elif kind == "tagging":
        columns = {
            "tokens": WORDS if written not in TEXT_FORMS else [" ".join(row) for row in WORDS],
            label: form.cells,
        }
    words = write(folder, columns, written, form.declared, label)
    run_args, _ = parse(None, [f"--task={kind}", f"--teacher={teachers(kind, form.known)}", *words])
    if isinstance(form.expected, str):
        with pytest.raises(UserError, match=form.expected) as error:
            TASKS[kind](run_args)
        assert "\n" not in str(error.value)
        return
    task = TASKS[kind](run_args)
    assert said(task, kind) == [some for some in form.expected if some is not None]
    missing = sum(some is None for some in form.expected)
    line = task.describe()[-1]
    assert f"{count} rows, {kind}" in line and (f"{missing} without a label left out" in line) == bool(missing)
    chosen = [i for i in range(count) if form.expected[i] is not None]
    if kind == "tagging":
        assert task.validation["text"][:] == [WORDS[i] for i in chosen]
    elif kind != "embedding":
        assert task.validation["text"][:] == [texts[i] for i in chosen]


CONTEXT = "NA and null, said the king in 1066."
ANSWERS = [("NA", 0), None, ("null", 7), ("1066", 30)]
TEXTS_OF, STARTS_OF = [a and a[0] for a in ANSWERS], [a and a[1] for a in ANSWERS]
OBJECTS = [{"text": [a[0]], "answer_start": [a[1]]} if a else {"text": [], "answer_start": []} for a in ANSWERS]
BLANK = [{"text": [""], "answer_start": [-1]} if not some["text"] else some for some in OBJECTS]
SQUAD: dict[str, tuple[dict[str, list[Any]], Any, tuple[str, ...]]] = {
    "objects": ({"answers": OBJECTS}, ANSWERS, (*JSONS, "parquet", "arrow", "hub")),
    "blank answers": ({"answers": BLANK}, ANSWERS, (*JSONS, "parquet", "arrow", "hub")),
    "objects as JSON": ({"answers": [json.dumps(some) for some in OBJECTS]}, ANSWERS, ALL),
    "text and offset": ({"answer_text": TEXTS_OF, "answer_start": STARTS_OF}, ANSWERS, ALL),
    "text without an offset": ({"answer": TEXTS_OF}, ANSWERS, ALL),
    "a wrong offset": ({"answer": TEXTS_OF, "answer_start": [3, None, 1, 0]}, ANSWERS, ALL),
    "impossible ones": (
        {"answer": ["NA", "king", "null", "1066"], "is_impossible": [False, True, False, False]},
        ANSWERS,
        ALL,
    ),
    "no answers": ({"more": TEXTS_OF}, "lacks the columns answers", ALL),
}


def write_questions(folder: Path, columns: dict[str, list[Any]], kind: str) -> list[str]:
    if kind not in TYPED:
        return write(folder, columns, kind, None, "")
    data = Dataset.from_dict(columns)  # with the types that `datasets` gives objects
    if kind == "arrow":
        data.save_to_disk(folder / "saved")
        return [f"--validation_file={folder / 'saved'}"]
    place = folder / ("a.parquet" if kind == "parquet" else "ds/data/validation-0.parquet")
    place.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(place)
    return [f"--validation_file={place}" if kind == "parquet" else f"--dataset={folder / 'ds'}"]


def check_questions(folder: Path, teachers: Any, name: str, written: str) -> None:
    columns, expected, _ = SQUAD[name]
    questions = {"id": list("abcd"), "question": ["NA?", "null", "who?", "7"], "context": [CONTEXT] * 4, **columns}
    words = write_questions(folder, questions, written)
    run_args, _ = parse(None, ["--task=squad", f"--teacher={teachers('squad', None)}", *words])
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            TASKS["squad"](run_args)
        return
    data = TASKS["squad"](run_args).validation
    assert data["question"][:] == questions["question"] and data["context"][:] == questions["context"]
    pairs = [[*zip(some["text"], some["answer_start"], strict=True)] for some in data["answers"]]
    assert pairs == [[some] if some else [] for some in expected]


@pytest.mark.parametrize("name", SQUAD)
@pytest.mark.parametrize("written", ["csv", "parquet"])
def test_questions_are_right_or_refused(tmp_path, teachers, name, written):
    if written in SQUAD[name][2]:
        check_questions(tmp_path, teachers, name, written)


@pytest.mark.slow
@pytest.mark.parametrize("name,written", [(name, written) for name, form in SQUAD.items() for written in form[2]])
def test_all_questions_are_right_or_refused(tmp_path, teachers, name, written):
    check_questions(tmp_path, teachers, name, written)


DRAWN = random.Random(0).sample([*cases()], 60)


@pytest.mark.parametrize("kind,form,written", DRAWN)
def test_what_is_brought_is_right_or_refused(tmp_path, teachers, kind, form, written):
    check(tmp_path, teachers, kind, form, written)


@pytest.mark.slow
@pytest.mark.parametrize("kind,form,written", cases())
def test_all_that_is_brought_is_right_or_refused(tmp_path, teachers, kind, form, written):
    check(tmp_path, teachers, kind, form, written)
