"""Rows of text from files and data sets, and what is refused in them."""

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from itrd_nlp.models.classes import class_names
from itrd_nlp.tasks.rows import CLASSES, SCORES, WORD_COLUMNS, load_rows
from itrd_nlp.utils.errors import UserError


def write(path, table):
    Dataset.from_dict(table).to_csv(path, index=False)
    return str(path)


def test_pairs_and_columns_of_other_names(tmp_path):
    pairs = {"sentence1": ["a"], "sentence2": ["b"], "gold": ["x"], "label": ["y"]}
    file = write(tmp_path / "pairs.csv", pairs)
    assert load_rows(None, None, file, None, CLASSES)[0].texts == [["a"], ["b"]]
    both = write(tmp_path / "both.csv", {**pairs, "labels": ["z"], "text": ["c"], "sentence": ["d"]})
    found = load_rows(None, None, both, None, CLASSES)[0]
    assert found.labels == ["y"] and found.unused == "not read: labels, text, sentence"
    chosen = load_rows(None, None, file, None, CLASSES._replace(text="sentence2", label="gold"))[0]
    assert chosen.texts == [["b"]] and chosen.labels == ["x"]
    assert load_rows(None, None, write(tmp_path / "bare.csv", {"text": ["a"]}), None, CLASSES)[0].labels is None


def test_a_data_set_with_classes_gives_their_names(tmp_path):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    split = Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    hidden = Dataset.from_dict({"sentence": ["c"], "label": [-1]}, features=features)
    tags = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    words = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, features=tags)
    for name, made in {"one": {"train": split, "test": hidden}, "two": {"train": words}}.items():
        for each, data in DatasetDict(made).items():
            (tmp_path / name / "data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / name / "data" / f"{each}-0.parquet")
    train, validation = load_rows(str(tmp_path / "one"), None, None, None, CLASSES)
    assert train.labels == [1, 0] and train.declared == ["bad", "good"] and train.split == "train"
    assert validation.texts == [["c"]] and validation.labels == [-1] and validation.split == "test"
    words = load_rows(str(tmp_path / "two"), None, None, None, WORD_COLUMNS)[0]
    assert words.labels == [[1, 0]] and words.declared == ["O", "B-X"]
    with pytest.raises(UserError, match="could not be loaded: .*'sst2' not found"):
        load_rows(str(tmp_path / "one"), "sst2", None, None, CLASSES)


@pytest.mark.parametrize(
    "content,columns,words",
    [
        ("review,label\na,b\n", CLASSES, "has the columns review, label: expected sentence1 and sentence2, or "),
        (
            "query,document,label\na,b,1\n",
            CLASSES,
            "expected sentence1 and .*queries and documents are for rerankers .--task reranking.",
        ),
        ("text,label\na,b\n", CLASSES._replace(text="txet"), "expected txet; did you mean 'text'"),
        ("text,label\na,b\n", CLASSES._replace(label="lable"), "expected label_column lable; did you mean 'label'"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, content, columns, words):
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        load_rows(None, None, str(tmp_path / "data.csv"), None, columns)
    assert "\n" not in str(error.value)


def test_one_split_may_lack_the_columns_that_are_named(tmp_path):
    texts = write(tmp_path / "texts.csv", {"text": ["a", "b"]})
    pairs = write(tmp_path / "pairs.csv", {"one": ["a"], "two": ["b"], "rating": [3]})
    named = SCORES._replace(
        text="one", text_pair="two", label="rating", layouts=(("text",), ("sentence1", "sentence2"))
    )
    train, validation = load_rows(None, None, texts, pairs, named)
    assert train.texts == [["a", "b"]] and train.labels is None
    assert validation.texts == [["a"], ["b"]] and [*map(float, validation.labels)] == [3.0]
    with pytest.raises(UserError, match="expected label_column stars"):
        load_rows(None, None, pairs, pairs, named._replace(label="stars"))
    with pytest.raises(UserError, match="expected three and two"):
        load_rows(None, None, texts, pairs, named._replace(text="three"))


def test_missing_data_is_one_line():
    for place, words in [((None, None, None, None), "no data given"), (("glue", None, None, None), "no namespace")]:
        with pytest.raises(UserError, match=words):
            load_rows(*place, CLASSES)
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="could not be loaded"):
        load_rows("nobody/nothing", None, None, None, CLASSES)


def test_classes_are_the_teacher_s_else_the_data_s():
    assert class_names(["10", "9", "9"], []) == ["9", "10"]
    assert class_names(["b", "a"], []) == ["a", "b"]
    assert class_names(["positive"], ["NEGATIVE", "POSITIVE"]) == ["NEGATIVE", "POSITIVE"]
    assert class_names(["0", "1"], ["bad", "good"]) == ["bad", "good"]
    with pytest.raises(UserError, match="the teacher tells bad, good apart, the data names a, b"):
        class_names(["a", "b"], ["bad", "good"])
    with pytest.raises(UserError, match=r"names 1 classes \(a\): expected two or more"):
        class_names(["a"], [])
