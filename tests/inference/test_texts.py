"""What a model says of a file is what its evaluation on that file scores."""

import csv
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel, CLIPConfig

import tiny
from cli.test_main import CONTEXT, refused
from itrd_nlp import student_from_teacher
from itrd_nlp.cli.main import main
from itrd_nlp.inference import texts as module
from itrd_nlp.inference.reranking import rerank
from itrd_nlp.inference.texts import TextModel, classify
from itrd_nlp.models.classes import task_of
from itrd_nlp.utils.errors import UserError

NAMES = ["no", "yes", "maybe"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = "the king of the city was in the house who ab1 , river Zürich".split()


def saved(folder, tokenizer, kind, **fields):
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.4}
    kind(tiny.config(layers=2, **options, **fields)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def texts(count, seed=0):
    """Of 1 to 400 words: some are longer than evaluation reads."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.choice([1, 5, 30, 400]))) for _ in range(count)]


def written(folder, rows, suffix):
    path = folder / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return str(path)


def predicted(capsys, folder, file, *words):
    capsys.readouterr()
    assert main(["predict", folder, "--file", file, *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def evaluated(capsys, folder, file, *words):
    capsys.readouterr()
    options = ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
    assert main(["evaluate", folder, "--validation_file", file, *options, *words]) == 0
    out = capsys.readouterr().out
    return json.loads(out[out.index("{\n") :])


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("pairs", [False, True])
def test_classes(tmp_path, tokenizer, capsys, suffix, pairs):
    folder = saved(tmp_path / "m", tokenizer, BertForSequenceClassification, id2label=dict(enumerate(NAMES)))
    draw = random.Random(1)
    rows = [{"text": text, "label": draw.choice(NAMES)} for text in texts(12)]
    if pairs:
        others = texts(12, 1)
        rows = [{"text": r["text"], "text_pair": x, "label": r["label"]} for r, x in zip(rows, others, strict=True)]
    file = written(tmp_path, rows, suffix)
    found = predicted(capsys, folder, file)
    accuracy = 100 * np.mean([said["label"] == row["label"] for said, row in zip(found, rows, strict=True)])
    assert accuracy == pytest.approx(evaluated(capsys, folder, file)["accuracy"])
    assert all(sum(said["scores"].values()) == pytest.approx(1) and [*said["scores"]] == NAMES for said in found)
    assert all(max(said["scores"], key=said["scores"].get) == said["label"] for said in found)
    (short,) = predicted(capsys, folder, written(tmp_path, rows[:1], suffix), "--max_length", "8")
    alone = TextModel(folder, 8).predict_one(rows[0]["text"], rows[0].get("text_pair"))
    assert short["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    for pair in ((" ", None), ("text", " "), ("\ud83e", None), (7, None)):
        with pytest.raises(UserError, match="the text is .*: expected text"):
            TextModel(folder, 8).predict_one(*pair)


def test_several_classes(tmp_path, tokenizer, capsys):
    problem = "multi_label_classification"
    folder = saved(
        tmp_path / "m", tokenizer, BertForSequenceClassification, id2label=dict(enumerate(NAMES)), problem_type=problem
    )
    draw = random.Random(1)
    rows = [{"text": text, "label": "|".join(draw.sample(NAMES, draw.randint(0, 3)))} for text in texts(20)]
    file = written(tmp_path, rows, "csv")
    found = predicted(capsys, folder, file)
    exact = [
        {*said["labels"]} == {*filter(None, row["label"].split("|"))} for said, row in zip(found, rows, strict=True)
    ]
    assert 100 * np.mean(exact) == pytest.approx(evaluated(capsys, folder, file)["exact_match"])
    assert all((said["scores"][name] > 0.5) == (name in said["labels"]) for said in found for name in NAMES)


def test_one_class_of_several_is_no_score(tmp_path, tokenizer):
    problem = {"problem_type": "multi_label_classification", "num_labels": 1}
    folder = saved(tmp_path / "m", tokenizer, BertForSequenceClassification, **problem)
    said = classify(folder, "the king")
    assert said["labels"] == [name for name, chance in said["scores"].items() if chance > 0.5]


def test_scores(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "m", tokenizer, BertForSequenceClassification, num_labels=1)
    rows = [{"text": text, "score": i / 4} for i, text in enumerate(texts(12))]
    file = written(tmp_path, rows, "jsonl")
    found = predicted(capsys, folder, file)
    squared = np.mean([(said["score"] - row["score"]) ** 2 for said, row in zip(found, rows, strict=True)])
    assert squared == pytest.approx(evaluated(capsys, folder, file)["mse"], rel=1e-4)


def test_tags(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "m", tokenizer, BertForTokenClassification, id2label=dict(enumerate(TAGS)))
    draw = random.Random(1)
    rows = [{"tokens": (words := text.split()), "tags": draw.choices(TAGS, k=len(words))} for text in texts(10)]
    file = written(tmp_path, rows, "jsonl")
    found = predicted(capsys, folder, file)
    scores = evaluated(capsys, folder, file)
    hits = [
        a == b for said, row in zip(found, rows, strict=True) for a, b in zip(said["tags"], row["tags"], strict=True)
    ]
    assert 100 * np.mean(hits) == pytest.approx(scores["accuracy"])
    assert [said["words"] for said in found] == [row["tokens"] for row in rows]
    for said in found:  # each entity is what its tags say
        for entity in said["entities"]:
            assert said["words"][entity["start"] : entity["end"]] == entity["text"].split()
            assert {tag[2:] for tag in said["tags"][entity["start"] : entity["end"]]} == {entity["type"]}
        inside = {i for entity in said["entities"] for i in range(entity["start"], entity["end"])}
        assert inside == {i for i, tag in enumerate(said["tags"]) if tag not in ("O", None)}
    assert any(None in said["tags"] for said in found) and all(said["tags"][0] for said in found)
    capsys.readouterr()
    assert main(["predict", folder, "--text", CONTEXT]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == CONTEXT.split()


def test_embeddings(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "m", tokenizer, BertModel)
    rows = [
        {"sentence1": a, "sentence2": b, "score": i}
        for i, (a, b) in enumerate(zip(texts(12), texts(12, 1), strict=True))
    ]
    file = written(tmp_path, rows, "csv")
    found = predicted(capsys, folder, file)
    ranks = np.argsort(np.argsort([said["similarity"] for said in found]))
    spearman = 100 * np.corrcoef(ranks, np.arange(12))[0, 1]  # no two are alike
    assert spearman == pytest.approx(evaluated(capsys, folder, file)["spearman"], abs=1e-3)
    for said, row in zip(found, rows, strict=True):
        assert np.linalg.norm(said["embedding"]) == pytest.approx(1, abs=1e-5)
        assert np.dot(said["embedding"], said["embedding_pair"]) == pytest.approx(said["similarity"], abs=1e-5)
        assert TextModel(folder).predict_one(row["sentence1"])["embedding"] == pytest.approx(
            said["embedding"], abs=1e-4
        )


def test_many_texts_are_tokenised_in_parts(tmp_path, tokenizer, monkeypatch):
    model = BertForSequenceClassification(tiny.config(vocab_size=len(tokenizer), num_labels=2)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = [f"the king {'house ' * n}" for n in range(7)]
    model = TextModel(str(tmp_path))
    whole = model.predict([texts], progress=False)
    monkeypatch.setattr(module, "CHUNK", 3)
    tokenise, sizes = model._tokenise, []
    model._tokenise = lambda columns: sizes.append(len(columns[0])) or tokenise(columns)
    parts = model.predict([texts], progress=False)
    assert sizes == [3, 3, 1]
    assert [x["label"] for x in parts] == [x["label"] for x in whole] and len(parts) == 7
    for one, other in zip(whole, parts, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_a_file_is_written_whole(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "m", tokenizer, BertForSequenceClassification, id2label=dict(enumerate(NAMES)))
    file = written(tmp_path, [{"review": "the king"}, {"review": "市長 the"}], "jsonl")
    assert predicted(capsys, folder, file, "--text_column", "review", "--output", str(tmp_path / "out.jsonl")) == []
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] in NAMES for line in lines] == [True, True]


def test_wrong_input_is_one_line(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path / "m", tokenizer, BertForSequenceClassification, id2label=dict(enumerate(NAMES)))
    rows = [{"text": "the king", "label": "yes"}, {"text": None, "label": "no"}, {"text": "\ud83e", "label": "no"}]
    file = written(tmp_path, rows, "jsonl")
    assert "row 1 of" in refused(capsys, "predict", folder, "--file", file)
    file = written(tmp_path, [rows[0], rows[2]], "jsonl")
    assert "half a character" in refused(capsys, "predict", folder, "--file", file)
    assert "max_length 513: expected" in refused(capsys, "predict", folder, "--text", "a", "--max_length", "513")
    assert "max_length 3: expected" in refused(capsys, "predict", folder, "--text", "a", "--max_length", "3")
    assert "--n_best with texts" in refused(capsys, "predict", folder, "--file", file, "--n_best", "3")
    assert "--null_threshold with --text" in refused(capsys, "predict", folder, "--text", "a", "--null_threshold", "0")
    assert "did you mean 'text'" in refused(capsys, "predict", folder, "--file", file, "--text_column", "texts")
    tagger = saved(tmp_path / "t", tokenizer, BertForTokenClassification)
    assert "pairs of texts" in refused(capsys, "predict", tagger, "--text", "a", "--text_pair", "b")
    words = ["--file", str(tmp_path / "a.csv"), "--text_pair_column", "b"]
    assert "text_pair_column 'b' alone: expected --text_column too" in refused(capsys, "predict", tagger, *words)
    with pytest.raises(UserError, match="a model for tagging: expected a classifier"):
        classify(tagger, "a")


def test_lists_of_texts_are_columns_of_equal_length(tmp_path, tokenizer):
    model = TextModel(saved(tmp_path, tokenizer, BertForSequenceClassification))
    expected = model.predict([["the king", "the city"]], progress=False)
    assert model.predict((np.array(["the king", "the city"]),), progress=False) == expected
    assert model.predict([[]]) == model.predict([[], []]) == []
    for columns, words in (
        (["the king", "the city"], "expected .texts. or"),
        ("the king", "expected .texts. or"),
        ([], "expected .texts. or"),
        ([["a"], ["b"], ["c"]], "expected .texts. or"),
        ([["a", "b"], ["c"]], "columns of 2 and 1 texts"),
        ([["a", None]], "text 1 is None: expected text"),
        ([["a", "b"], ["c", None]], "second text 1 is None: expected text"),
        (None, "expected .texts. or"),
        ([["a"], None], "expected .texts. or"),
        ([5], "expected .texts. or"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict(columns)
    tagger = TextModel(saved(tmp_path / "tags", tokenizer, BertForTokenClassification))
    with pytest.raises(UserError, match="text 0 is 'the king': expected a list of words"):
        tagger.predict([["the king"]])
    with pytest.raises(UserError, match="a model of type BertForSequenceClassification"):
        classify(model.model, "the king")


def test_classes_of_one_name_keep_their_probabilities(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, BertForSequenceClassification, id2label={0: "crane", 1: "cat", 2: "crane"})
    scores = classify(folder, "the king")["scores"]
    assert [*scores] == ["crane", "cat", "crane (2)"] and sum(scores.values()) == pytest.approx(1)


def test_numbers_as_names_of_classes_are_texts(tmp_path, tokenizer):
    for kind, folder in ((BertForSequenceClassification, "a"), (BertForTokenClassification, "b")):
        path = saved(tmp_path / folder, tokenizer, kind)
        config = json.loads((tmp_path / folder / "config.json").read_text())
        (tmp_path / folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": 0, "1": 1}}))
        result = TextModel(path).predict_one("the king")
        assert {*result.get("scores", result.get("tags"))} <= {"0", "1"}


def test_documents_are_read_to_512_tokens_by_any_reranker(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, BertForSequenceClassification, num_labels=1)
    assert TextModel(folder, reranks=True).max_length == 512 and TextModel(folder).max_length == 256


@pytest.mark.parametrize("classes", [1, 2])
def test_a_file_of_queries_and_documents_is_ranked_by_any_reranker(tmp_path, tokenizer, capsys, classes):
    folder = saved(tmp_path, tokenizer, BertForSequenceClassification, num_labels=classes)
    (tmp_path / "pairs.csv").write_text("query,document\nthe king,the river\nthe king,a king\n")
    assert main(["predict", folder, "--file", str(tmp_path / "pairs.csv")]) == 0
    scores = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    ranked = {each.document: each.score for each in rerank(folder, "the king", ["the river", "a king"])}
    assert scores == pytest.approx([ranked["the river"], ranked["a king"]], abs=1e-5)


def test_a_classifier_of_two_classes_reads_the_columns_of_texts(tmp_path, tokenizer, capsys):
    folder = saved(tmp_path, tokenizer, BertForSequenceClassification, id2label={0: "no", 1: "yes"})
    (tmp_path / "texts.csv").write_text("question,text\nwho?,the king\n")
    assert main(["predict", folder, "--file", str(tmp_path / "texts.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == classify(folder, "the king")["label"]


def test_an_encoder_without_a_pooler_is_one(tmp_path, tokenizer):
    """As published ones are; no embedding reads it."""
    BertModel(tiny.config(vocab_size=len(tokenizer)), add_pooling_layer=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(TextModel(str(tmp_path)).predict_one("the king")["embedding"]) == 32
    assert student_from_teacher(str(tmp_path), layers="first:1", verbose=False).config.num_hidden_layers == 1


@pytest.mark.parametrize("head", ["BertLMHeadModel", "GPT2DoubleHeadsModel", "CLIPModel"])
def test_a_model_that_is_no_encoder_of_texts_is_none(head):
    config = CLIPConfig() if head == "CLIPModel" else BertConfig()
    config.architectures = [head]
    assert task_of(config) is None
    assert task_of(BertConfig(architectures=["BertModel"])) == "embedding"


def test_a_model_that_gives_several_scores_is_refused(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer, BertForSequenceClassification, num_labels=2, problem_type="regression")
    with pytest.raises(UserError, match="scores a text 2 times: expected one output"):
        classify(folder, "the king")
