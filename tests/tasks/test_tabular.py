"""The one reader of tables: the same rows by every route, and what is refused in one line."""

import bz2
import csv
import gzip
import json
import lzma

import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from itrd_nlp.tasks.tabular import load_splits, load_tables, read_dataset, read_table, split_of
from itrd_nlp.utils.errors import UserError

ROWS = {"text": ["NA", "null", "007", "a, b", 'said "no"\nand left', "", "日本 🦊", "nan"], "label": list("xyxyxyxy")}


def lists(table):
    return {name: list(values[:]) for name, values in table.columns.items()}


def csv_of(columns, delimiter=","):
    """As the csv module writes it."""
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    cell = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
    return "\n".join(delimiter.join(map(cell, line)) for line in lines) + "\n"


def objects_of(columns):
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def forms(columns):
    """Name of a file -> its bytes, in every form of text."""
    table, lines = csv_of(columns), "\n".join(map(json.dumps, objects_of(columns)))
    made = {
        "a.csv": table.encode(),
        "A.CSV": table.encode(),
        "bom.csv": table.encode("utf-8-sig"),
        "crlf.csv": "\r\n".join(csv_of({k: [c.replace("\n", " ") for c in v] for k, v in columns.items()}).split("\n")),
        "semicolon.csv": csv_of(columns, ";").encode(),
        "tab.csv": csv_of(columns, "\t").encode(),
        "a.tsv": csv_of(columns, "\t").encode(),
        "a.csv.gz": gzip.compress(table.encode()),
        "a.csv.bz2": bz2.compress(table.encode()),
        "a.jsonl.xz": lzma.compress(lines.encode()),
        "a.jsonl": lines.encode(),
        "a.ndjson": (lines + "\n\n").encode(),
        "bom.jsonl": lines.encode("utf-8-sig"),
        "lines.json": lines.encode(),
        "a.json": json.dumps(objects_of(columns)).encode(),
        "list.jsonl": json.dumps(objects_of(columns), indent=1).encode(),
        "field.json": json.dumps({"version": 1, "data": objects_of(columns)}).encode(),
        "pandas.json": pandas.DataFrame(columns).to_json().encode(),
    }
    return {name: content.encode() if isinstance(content, str) else content for name, content in made.items()}


@pytest.mark.parametrize("name", forms(ROWS))
def test_texts_are_read_as_they_were_written_from_files_and_from_folders(tmp_path, name):
    (tmp_path / "ds").mkdir()
    for place in (tmp_path / name, tmp_path / "ds" / f"train-{name}"):
        place.write_bytes(forms(ROWS)[name])
    expected = ROWS if name != "crlf.csv" else {**ROWS, "text": [text.replace("\n", " ") for text in ROWS["text"]]}
    assert lists(read_table(str(tmp_path / name))) == expected
    if not name.startswith(("A.", "list", "field", "pandas")):  # what `datasets` finds in a folder
        assert lists(read_dataset(str(tmp_path / "ds"))["train"]) == expected


def test_pandas_and_datasets_write_what_is_read_back(tmp_path):
    pandas.DataFrame(ROWS).to_csv(tmp_path / "p.csv", index=False)
    pandas.DataFrame(ROWS).to_csv(tmp_path / "index.csv")  # with a first column without a name
    Dataset.from_dict(ROWS).to_csv(tmp_path / "d.csv")
    Dataset.from_dict(ROWS).to_json(tmp_path / "d.json")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "p[1]?.parquet")
    pandas.DataFrame(ROWS).astype({"label": "category"}).to_parquet(tmp_path / "c.parquet")
    for name in ("p.csv", "index.csv", "d.csv", "d.json", "p[1]?.parquet", "c.parquet"):
        assert lists(read_table(str(tmp_path / name))) == ROWS, name


def declared():
    features = {
        "text": Value("string"),
        "label": ClassLabel(names=["b", "a"]),
        "tags": List(ClassLabel(names=["O", "X"])),
    }
    return Dataset.from_dict({"text": ["NA", "b"], "label": [1, -1], "tags": [[0, 1], []]}, features=Features(features))


def routes(folder):
    """Every way to give one data set, and what reads it."""
    data = declared()
    data.to_parquet(folder / "a.parquet")
    data.save_to_disk(folder / "saved")
    DatasetDict({"train": data, "test": data}).save_to_disk(folder / "dict")
    for name in ("hub/data/train-0", "hub/data/test-0", "shards/part-0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(folder / f"{name}.parquet")
    places = ["a.parquet", "saved", "saved/data-00000-of-00001.arrow", "dict", "dict/train", "hub", "shards"]
    made = [read_table(str(folder / place), serves) for place in places for serves in ("train", "validation")]
    return made + [read_dataset(str(folder / place))[split] for place in ("dict", "hub") for split in ("train", "test")]


def test_one_data_set_has_the_same_rows_and_classes_by_every_route(tmp_path):
    for table in routes(tmp_path):
        assert lists(table) == declared().to_dict(), table.source
        assert table.features["label"].names == ["b", "a"] and table.features["tags"].feature.names == ["O", "X"]
        assert len(table) == 2 and table.dataset is not None


def test_a_compressed_file_in_a_folder_is_read_as_it_is_now(tmp_path):
    for label in ("old", "new"):
        with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
            file.write(json.dumps({"text": "a", "label": label}) + "\n")
        for read in (read_table, lambda folder: read_dataset(folder)["train"]):
            assert list(read(str(tmp_path)).columns["label"][:]) == [label]


def test_shards_are_joined_in_order(tmp_path):
    for i in range(3):
        Dataset.from_dict({"text": [f"{i}"]}).to_parquet(tmp_path / f"part-{i}.parquet")
    assert lists(read_table(str(tmp_path))) == {"text": ["0", "1", "2"]}
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "train-0.jsonl").write_text('{"text": "a", "label": 1}\n')
    (tmp_path / "two" / "train-1.jsonl").write_text('{"text": "b"}\n')
    assert lists(read_table(str(tmp_path / "two"))) == {"text": ["a", "b"], "label": [1, None]}


def test_a_cell_of_a_csv_is_as_long_as_it_likes_and_the_module_keeps_its_limit(tmp_path):
    long = "the mayor opened the bridge . " * 10_000
    (tmp_path / "a.csv").write_text(csv_of({"text": [long], "label": ["x"]}))
    before = csv.field_size_limit()
    assert lists(read_table(str(tmp_path / "a.csv"))) == {"text": [long], "label": ["x"]}
    assert csv.field_size_limit() == before


def test_values_of_json_keep_their_types(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": [1, 0]}\n{"text": null, "label": true, "more": 1.0}\n')
    table = read_table(str(tmp_path / "a.jsonl"))
    assert lists(table) == {"text": ["a", None], "label": [[1, 0], True], "more": [None, 1.0]} and not table.features


def test_quotes_after_a_blank_are_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('"text", "label"\n"a, b", "x"\n"c", "y"\n')
    assert lists(read_table(str(tmp_path / "a.csv"))) == {"text": ["a, b", "c"], "label": ["x", "y"]}
    (tmp_path / "b.csv").write_text('text,label\n a "b",x\n')
    assert lists(read_table(str(tmp_path / "b.csv"))) == {"text": [' a "b"'], "label": ["x"]}


def test_a_quote_in_a_file_with_tabs_is_one_of_its_text(tmp_path):
    lines = ["text\tlabel", '"Great film!\t1', 'I loved it"\t0', '"a ""b"" c"\t1', '"a" and "b"\t0', '"\t"1"']
    for name, end in (("a.tsv", "\n"), ("b.tsv", "\r\n")):
        (tmp_path / name).write_bytes(end.join([*lines, ""]).encode())
        texts = ['"Great film!', 'I loved it"', 'a "b" c', '"a" and "b"', '"']
        assert lists(read_table(str(tmp_path / name))) == {"text": texts, "label": ["1", "0", "1", "0", "1"]}
    for name, text in (("tab.tsv", "a\tb"), ("break.tsv", "a\nb")):  # a cell in quotes that holds what parts cells
        (tmp_path / name).write_text(f'text\tlabel\n"{text}"\tx\nc\ty\n')
        assert lists(read_table(str(tmp_path / name))) == {"text": [text, "c"], "label": ["x", "y"]}
    (tmp_path / "one.tsv").write_text('text\n"a\nb"\n')
    assert lists(read_table(str(tmp_path / "one.tsv"))) == {"text": ["a\nb"]}


def test_an_object_on_one_line_is_a_row(tmp_path):
    for row in ({"text": "a", "label": 1}, {"tokens": ["a", "b"], "ner_tags": ["O", "O"]}):
        (tmp_path / "a.json").write_text(json.dumps(row) + "\n")
        assert lists(read_table(str(tmp_path / "a.json"))) == {name: [cell] for name, cell in row.items()}
    (tmp_path / "a.json").write_text('{"rows": [{"text": "a"}]}')
    with pytest.raises(UserError, match="expected a list of objects, an object on each line"):
        read_table(str(tmp_path / "a.json"))


def test_what_parts_a_csv_is_what_makes_even_rows(tmp_path):
    (tmp_path / "a.csv").write_text('"text, all of it";label\na, b, c;x\nd;y\n')
    assert lists(read_table(str(tmp_path / "a.csv"))) == {"text, all of it": ["a, b, c", "d"], "label": ["x", "y"]}
    (tmp_path / "b.csv").write_text("text;more,label\na;b,c\n")
    with pytest.raises(UserError, match="can be split at ',' and at ';'"):
        read_table(str(tmp_path / "b.csv"))
    (tmp_path / "c.csv").write_text("text\na;b\n\nc\n")
    assert lists(read_table(str(tmp_path / "c.csv"))) == {"text": ["a;b", "c"]}


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"text,label,text\na,b,c\n", "has two columns called 'text'"),
        ("a.csv", b"text,label\na,b\nc\n", "row 1 of .* has fewer cells than the header"),
        ("a.csv", b"text,label\na,b\nc,d,e\n", "row 1 of .* has more cells than the header: put texts with commas"),
        ("a.csv", b'text,label\n"a,b\n', "is not valid csv: unexpected end of data"),
        ("a.csv", "text\nKöln\n".encode("cp1252"), "save it as UTF-8"),
        ("a.csv", "text\na\n".encode("utf-16"), "save it as UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "line 2 of .* is not valid json"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "an object with two values for 'text'"),
        ("a.jsonl", b'{"text": "a"}\n3\n', "row 1 of .*: expected an object, found 3"),
        ("a.json", b'{"rows": 3}', "expected a list of objects, an object on each line, or SQuAD"),
        ("a.json", b"[" * 100_000, "is not valid json"),
        ("a.csv.gz", b"text\na\n", "cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"text\na\n" * 99, mtime=0)[:-9], "cannot be read"),
        ("a.parquet", b"x", "is not valid parquet"),
        ("a.arrow", b"x", "is not valid arrow"),
        ("a.zip", b"x", "ends in '.zip': expected one of .csv, .tsv"),
        ("a.xlsx", b"x", "ends in '.xlsx': expected one of .csv, .tsv"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_table(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_split_that_a_folder_lacks_is_not_another_one(tmp_path):
    for name in ("train", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "train" / "train.csv").write_text("text\na\n")
    (tmp_path / "other" / "validation.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"has the splits \['train'\]: expected validation"):
        read_table(str(tmp_path / "train"), "validation")
    with pytest.raises(UserError, match=r"has the splits \['validation'\]: expected train"):
        read_table(str(tmp_path / "other"), "train")


@pytest.mark.parametrize("name", ["dev", "val", "valid"])
def test_a_test_split_is_not_validated_on_where_there_is_another(tmp_path, name):
    splits = {split: Dataset.from_dict({"text": [split]}) for split in ("train", "test", name)}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    assert split_of(load_splits(str(tmp_path / "data")), "validation").to_list() == [{"text": name}]


def test_a_folder_of_files_has_its_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    assert load_splits(str(tmp_path))["train"].to_list() == [{"text": "a", "label": "b"}]


FILMS = [{"text": "good film", "label": "pos"}, {"text": "bad", "label": "neg"}]


@pytest.mark.parametrize(
    ("file", "content", "option"),
    [
        ("train.csv", "good film|pos\nbad|neg\n", 'sep: "|"\n    names: [text, label]'),
        ("train.csv", "text;label\ngood film;pos\nbad;neg\n", 'sep: ";"'),
        (
            "train.json",
            '{"rows": [{"text": "good film", "label": "pos"}, {"text": "bad", "label": "neg"}]}',
            "field: rows",
        ),
    ],
)
def test_the_card_of_a_data_set_says_how_its_files_are_read(tmp_path, file, content, option):
    (tmp_path / file).write_text(content)
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n  - config_name: default\n    data_files: {file}\n    {option}\n---\n"
    )
    table = read_dataset(str(tmp_path))["train"]
    columns = {name: list(table.columns[name][:]) for name in table.columns}
    assert columns == {name: [row[name] for row in FILMS] for name in ("text", "label")}


def test_a_card_that_names_the_usual_delimiters_changes_no_text(tmp_path):
    (tmp_path / "train.csv").write_text("text;label\n007;NA\n")
    card = 'configs:\n  - config_name: default\n    data_files: train.csv\n    sep: ";"\n'
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    table = read_dataset(str(tmp_path))["train"]
    assert [list(table.columns[name][:]) for name in ("text", "label")] == [["007"], ["NA"]]


def test_a_split_without_rows_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "validation.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="holds no questions in its split validation: expected at least one"):
        load_tables(str(tmp_path), None, None, None, "rajpurkar/squad", "questions")
    made = Dataset.from_dict({"text": ["a"]})
    DatasetDict({"train": made, "validation": made.select([])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="could not be loaded|holds no questions"):  # some `datasets` cannot read it
        load_tables(str(tmp_path / "saved"), None, None, None, "rajpurkar/squad", "questions")


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
