"""Gold answers in every form that files give them: the same rows by every route."""

import csv
import json
import random

import numpy as np
import pandas
import pytest
from datasets import Dataset

from itrd_nlp.tasks.question_answering.data import load_squad, read_questions
from itrd_nlp.tasks.question_answering.gold_answers import is_impossible, locate, read_answers
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.utils.errors import UserError

CONTEXT = "the mayor opened the bridge in 1911 ."
YEAR = {"text": ["1911"], "answer_start": [31]}
NO_ANSWER = [
    [],
    None,
    "",
    "[]",
    float("nan"),
    {"text": [], "answer_start": []},
    {"text": [""], "answer_start": [-1]},
    {"text": ["", " "], "answer_start": [0, 0]},
    {"text": [None], "answer_start": [None]},
    {"text": "", "answer_start": -1},
    {"text": None},
    [{"text": "", "answer_start": 0}],
    [""],
    "{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}",
    '{"text": [""], "answer_start": [-1]}',
]
ONE_ANSWER = [
    YEAR,
    {"text": "1911", "answer_start": 31},
    {"text": "1911", "answer_start": [31]},
    {"text": ["1911"], "answer_start": ["31.0"]},
    {"text": ["", "1911"], "answer_start": [-1, 31.0]},
    [{"text": "1911", "answer_start": 31}],
    json.dumps(YEAR),
    str(YEAR),
    "{'text': array(['1911'], dtype=object),\n 'answer_start': array([31], dtype=int32)}",
]
WITHOUT_OFFSET = [{"text": ["1911"]}, {"text": [1911]}, {"text": [1911.0]}, ["1911"], "1911", "['1911']"]


@pytest.mark.parametrize("cell", NO_ANSWER, ids=repr)
def test_no_answer_in_every_spelling(cell):
    assert read_answers({"answers": cell}, "row 0") == []
    if not isinstance(cell, str) or not cell:
        assert read_answers({"answer": cell, "answer_start": -1}, "row 0") == []


@pytest.mark.parametrize("cell", [*ONE_ANSWER, *WITHOUT_OFFSET], ids=repr)
def test_one_answer_in_every_spelling(cell):
    offset = 31 if cell in ONE_ANSWER else None
    assert read_answers({"answers": cell}, "row 0") == [("1911", offset)]


@pytest.mark.parametrize(
    "cell",
    [4, True, {"texts": ["c"]}, {"text": ["c"], "answer_start": []}, "[1", "{c}", [["c"]], {"text": [{}]}],
    ids=repr,
)
def test_refuses_other_forms(cell):
    with pytest.raises(UserError, match="row 7: answers .* are not of the form"):
        read_answers({"answers": cell}, "row 7")


@pytest.mark.parametrize("start", [31.5, "first", [], float("inf")], ids=repr)
def test_refuses_an_offset_that_is_no_whole_number(start):
    with pytest.raises(UserError, match="row 7: expected a whole number as answer_start"):
        read_answers({"answers": {"text": ["c"], "answer_start": [start]}}, "row 7")


@pytest.mark.parametrize("value", [True, np.True_, 1, 1.0, "True", "true", "1", " TRUE "], ids=repr)
def test_impossible_in_every_spelling(value):
    assert is_impossible(value, "row 0")
    assert read_answers({"answers": YEAR, "is_impossible": value}, "row 0") == []


@pytest.mark.parametrize("value", [False, np.False_, 0, 0.0, None, float("nan"), "False", "0", ""], ids=repr)
def test_possible_in_every_spelling(value):
    assert not is_impossible(value, "row 0")
    assert read_answers({"answers": YEAR, "is_impossible": value}, "row 0") == [("1911", 31)]


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_column_hides_no_answer(blank):
    flat = {"answers": blank, "answer_text": "c", "answer_start": "0"}
    assert read_answers(flat, "row 0") == [("c", 0)]
    assert read_answers({"answer_text": blank, "answer": "c"}, "row 0") == [("c", None)]
    assert read_answers({"answers": blank, "answer_text": blank}, "row 0") == []


def test_refuses_another_is_impossible():
    with pytest.raises(UserError, match="row 7: is_impossible is 'perhaps': expected true or false"):
        read_answers({"answers": YEAR, "is_impossible": "perhaps"}, "row 7")


def rows():
    """Two questions with an answer; the third without one, which a blank text and ``is_impossible`` both say."""
    common = {"question": "when ?", "context": CONTEXT}
    return [
        common | {"id": "a", "answers": YEAR, "is_impossible": False},
        common | {"id": "b", "answers": {"text": [""], "answer_start": [-1]}, "is_impossible": False},
        common | {"id": "c", "answers": YEAR, "is_impossible": True},
    ]


def written(folder, route):
    """``rows`` by a route, as arguments of `load_squad`."""
    file = folder / route
    match route:
        case "nested.json":
            some = [
                {k: row[k] for k in ("id", "question", "is_impossible")}
                | {
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(*row["answers"].values(), strict=True)
                    ]
                }
                for row in rows()
            ]
            file.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": some}]}]}))
        case "under data.json":
            file.write_text(json.dumps({"version": "2", "data": rows()}))
        case "rows.json":
            file.write_text(json.dumps(rows()))
        case "rows.jsonl":
            file.write_text("\n".join(map(json.dumps, rows())))
        case "rows.parquet":
            Dataset.from_list(rows()).to_parquet(file)
        case "datasets.csv":
            Dataset.from_list(rows()).to_csv(file)
        case "pandas.csv":
            Dataset.from_list(rows()).to_pandas().to_csv(file, index=False)
        case "pandas.parquet":
            pandas.DataFrame(rows()).to_parquet(file)
        case "json in cells.csv" | "flat.csv":
            with file.open("w", newline="") as out:
                some = [dict(row) for row in rows()]
                for row in some:
                    answers = row.pop("answers")
                    if route == "flat.csv":
                        row |= {"answer_text": answers["text"][0], "answer_start": answers["answer_start"][0]}
                    else:
                        row["answers"] = json.dumps(answers)
                writer = csv.DictWriter(out, list(some[0]))
                writer.writeheader()
                writer.writerows(some)
        case "data set":
            file.mkdir()
            for split in ("train", "validation"):
                Dataset.from_list(rows()).to_parquet(file / f"{split}-0.parquet")
            return {"dataset": str(file)}
    return {"train_file": str(file), "validation_file": str(file)}


ROUTES = (
    *("nested.json", "under data.json", "rows.json", "rows.jsonl", "rows.parquet", "datasets.csv", "pandas.csv"),
    *("pandas.parquet", "json in cells.csv", "flat.csv", "data set"),
)


@pytest.mark.parametrize("route", ROUTES)
def test_no_answer_is_none_by_every_route(tmp_path, route, tokenizer, caplog):
    arguments = written(tmp_path, route)
    train, validation, skipped = load_squad(**arguments)
    empty = {"text": [], "answer_start": []}
    questions = [{"id": name, "question": "when ?", "context": CONTEXT} for name in "abc"]
    expected = [row | {"answers": answers} for row, answers in zip(questions, (YEAR, empty, empty), strict=True)]
    assert train.to_list() == validation.to_list() == expected
    if "validation_file" in arguments:
        assert read_questions(arguments["validation_file"]).to_list() == questions
    assert not skipped and "not in their context" not in caplog.text
    task = SquadTask(tokenizer, train, validation, max_length=64, null_threshold=-1e4)
    zeros = np.zeros((len(task.eval_dataset), 64))
    scores = task.compute_metrics(type("P", (), {"predictions": (zeros, zeros)}))
    assert (scores["HasAns_total"], scores["NoAns_total"], scores["NoAns_exact_match"]) == (1, 2, 100.0)


@pytest.mark.parametrize("route", ["rows.jsonl", "data set"])
def test_missing_answers_are_counted_and_where_all_are_missing_refused(tmp_path, route, caplog):
    def save(some):
        if route == "data set":
            (tmp_path / "data").mkdir(exist_ok=True)
            Dataset.from_list(some).to_parquet(tmp_path / "data" / "train-0.parquet")
            return load_squad(str(tmp_path / "data")).train
        (tmp_path / route).write_text("\n".join(map(json.dumps, some)))
        return load_squad(train_file=str(tmp_path / route)).train

    common = {"question": "when ?", "context": CONTEXT}
    with pytest.raises(UserError, match="row 0 of .*: expected answers, found none"):
        save([common | {"answers": None}] * 2)
    data = save([common | {"answers": YEAR}, common | {"answers": None}])
    assert [row["text"] for row in data["answers"]] == [["1911"], []]
    assert "1 of 2 questions of" in caplog.text and "have an empty answer: taken as having none" in caplog.text


def test_offsets_in_a_column_of_their_own_count():
    context = "Born 1911, wrote in 1911."
    cells = [("answers", "1911", 20), ("answers", "1911", "20"), ("answers", ["1911"], [20])]
    cells += [
        ("answers", "['1911']", 20),
        ("answer_text", ["1911"], [20]),
        ("answer", "1911", "20"),
        ("answers", "['1911']", "[20]"),
    ]
    for name, text, start in cells:
        (pair,) = read_answers({name: text, "answer_start": start}, "row 0")
        assert locate(context, *pair) == ("1911", 20), (name, text, start)
    assert read_answers({"answers": ["a", "b"], "answer_start": [3, 9]}, "row 0") == [("a", 3), ("b", 9)]
    assert read_answers({"answers": [], "answer_start": [-1]}, "row 0") == []
    assert read_answers({"answers": "['a', 'b']", "answer_start": ""}, "row 0") == [("a", None), ("b", None)]
    assert read_answers({"answers": "['a', 'b']", "answer_start": "20"}, "row 0") == [("a", 20), ("b", 20)]
    with pytest.raises(UserError, match="row 0: answers"):
        read_answers({"answers": ["a", "b"], "answer_start": [3]}, "row 0")


def test_ids_of_numbers(tmp_path):
    common = {"question": "when ?", "context": CONTEXT, "answers": ["1911"]}
    pandas.DataFrame([common | {"id": 7}, common | {"id": None}]).to_parquet(tmp_path / "a.parquet")
    assert load_squad(validation_file=str(tmp_path / "a.parquet")).validation["id"][:] == ["7", "1"]


@pytest.mark.parametrize("unit", ["characters", "utf-16", "utf-8", "none"])
def test_offsets_in_other_units(unit):
    draw = random.Random(0)
    for _ in range(200):
        words = [draw.choice(["🦊", "é", "red", "東京", "a"]) for _ in range(12)]
        context, place = " ".join(words), draw.randrange(12)
        start, text = len(" ".join(words[:place])) + bool(place), words[place]
        before = context[:start]
        if unit == "none":  # the first occurrence
            assert locate(context, text, None) == (text, context.index(text))
            continue
        units = {"characters": start, "utf-16": len(before.encode("utf-16-le")) // 2, "utf-8": len(before.encode())}
        told = units[unit]
        found, offset = locate(context, text, told)
        assert found == text and context.startswith(text, offset)
        if not context.startswith(text, told):  # another occurrence there cannot be told from the right one
            also = len(context.encode("utf-16-le")[: 2 * told].decode("utf-16-le", "ignore"))
            assert offset == start or context.startswith(text, also)


def test_without_an_offset_an_answer_does_not_begin_or_end_within_a_word():
    context = "Between 1843 and 1852, 4 engines were sold by BSkyB, which is Sky."
    assert locate(context, "4", None) == ("4", context.index(", 4") + 2)
    assert locate(context, "Sky", None) == ("Sky", context.index("Sky."))
    assert locate(context, "184", None) == ("184", 8)  # there is no other
    assert locate(context, "4", 10) == ("4", 10)
    assert locate(context, "Sky", 46) == ("Sky", 47)  # the nearest


@pytest.mark.parametrize("blank", ["\r\n", "\n", "\u00a0", "  ", "\t"])
def test_an_answer_across_other_blanks_is_found_as_its_context_spells_it(blank):
    context = f"one red{blank}car and a red{blank}car"
    assert locate(context, "red car", 4) == (f"red{blank}car", 4)
    assert locate(context, "red car", 99) == (f"red{blank}car", context.rindex("red"))
    assert locate(context, "red bus", 4) == ("red bus", -1)
