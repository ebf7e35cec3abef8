"""Tagging: words and their tokens, entities, and a student that learns from tags, logits and features."""

import json
import random

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification, BertForTokenClassification, EvalPrediction

import tiny
from distillation.test_alignment import tokenizer as trained
from itrd_nlp.distillation.distiller import build_distiller
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.tag_schemes import entities
from itrd_nlp.tasks.token_classification import TaggingTask
from itrd_nlp.utils.batches import IGNORED
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tokenizers import for_words
from tasks.test_text_classification import arguments

ROWS = Rows("a.jsonl", [[["the", "kings", "house"], ["rivers"]]], [["O", "B-PER", "I-PER"], ["B-LOC"]])


def test_a_word_s_tag_is_that_of_its_first_token(tokenizer):
    task = TaggingTask(tokenizer, ROWS, None)
    assert task.class_names == ["B-LOC", "B-PER", "I-PER", "O"]
    row = task.train_dataset[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "king", "##s", "house", "[SEP]"]
    assert row["labels"] == [IGNORED, 3, 1, IGNORED, 2, IGNORED]
    batch = task.collator(
        [{k: task.train_dataset[i][k] for k in ("input_ids", "attention_mask", "labels")} for i in (0, 1)]
    )
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 8)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize(
    "tags,expected",  # as conlleval.pl has it
    [
        (["I-X", "I-X", "O", "I-Y"], {("X", 0, 2), ("Y", 3, 4)}),
        (["B-X", "I-Y"], {("X", 0, 1), ("Y", 1, 2)}),
        (["S-X", "B-X", "I-X", "E-X", "I-X"], {("X", 0, 1), ("X", 1, 4), ("X", 4, 5)}),
        (["E-X", "E-X"], {("X", 0, 1), ("X", 1, 2)}),
        (["O", "O"], set()),
        (["B-first-name", "I-first-name"], {("first-name", 0, 2)}),
        (["NOUN", "NOUN", "VERB"], {("NOUN", 0, 1), ("NOUN", 1, 2), ("VERB", 2, 3)}),
    ],
)
def test_entities_of_other_schemes(tags, expected):
    assert entities(tags) == expected


def test_words_behind_the_first_are_no_middles_of_words(tmp_path):
    before, words = trained("bytes"), ["the", "engine", "engineering", "the"]
    expected = before(" " + " ".join(words))["input_ids"]
    assert before(words, is_split_into_words=True)["input_ids"] != expected
    task = TaggingTask(before, Rows("a.jsonl", [[words]], [["O", "B-X", "I-X", "O"]]), None)
    assert task.train_dataset["input_ids"][0] == expected
    made = BertForTokenClassification(tiny.config(vocab_size=len(before), num_labels=3))
    made.save_pretrained(tmp_path)
    for each in (before, task.processor(made)):  # a model of others, and one of ours
        each.save_pretrained(tmp_path)
        assert TextModel(str(tmp_path)).tokenizer(words, is_split_into_words=True)["input_ids"] == expected


def test_tokenizers_that_differ_in_the_blank_before_words_are_one():
    before = trained("bytes")
    task = TaggingTask(for_words(before), ROWS, None, teacher_tokenizer=before)
    assert task.teacher_tokenizer is None and "alignment" not in task.train_dataset.column_names


def test_f1_is_that_of_entities_and_words_that_were_cut_count(tokenizer):
    task = TaggingTask(tokenizer, ROWS, ROWS, max_length=5)  # "house" does not fit
    data = task.eval_dataset
    assert [row["words"] for row in data] == [[0, 1], [0]]
    logits = np.zeros((2, 8, 4))
    for i, row in enumerate(data):
        for place, label in enumerate(row["labels"]):
            logits[i, place, label if label != IGNORED else 0] = 1
    scores, each = task.score(EvalPrediction(logits, None))
    assert scores["precision"] == scores["recall"] == scores["f1"] == 50  # the king is found without his house
    assert each["f1"] == [[0, 1, 1], [1, 1, 1]] and scores["accuracy"] == 75 and scores["total"] == 2


def test_without_an_entity_on_either_side_f1_is_0_as_in_seqeval(tokenizer):
    rows = Rows("a.jsonl", [[["the", "king", "house"]]], [["O", "O", "O"]])
    train = Rows("", [[["king", "of"]]], [["B-PER", "O"]])
    task = TaggingTask(tokenizer, train, rows, max_length=4)  # "house" does not fit
    logits = np.zeros((1, 8, 2))
    logits[..., task.class_names.index("O")] = 1
    scores, _ = task.score(EvalPrediction(logits, None))
    assert scores["f1"] == scores["precision"] == scores["recall"] == 0
    assert scores["accuracy"] == pytest.approx(200 / 3)  # a word that was not read is not right
    with pytest.raises(UserError, match="NaN for 1 of 1 validation examples"):
        task.score(EvalPrediction(np.full_like(logits, np.nan), None))


def test_logits_are_compared_at_real_tokens_alone(tokenizer):
    task = TaggingTask(tokenizer, ROWS, None)
    made = [BertForTokenClassification(tiny.config(vocab_size=len(tokenizer), num_labels=4)).eval() for _ in range(2)]
    names = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "labels")
    batch = dict(task.collator([{name: row[name] for name in names} for row in task.train_dataset]))
    distiller, reader = build_distiller(*made, batch, losses={"kd": {"temperature": 1}})
    value = distiller.eval()(reader(made[1], batch)[1], **batch)["terms"]["kd"].item()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    s, t = [model(**inputs).logits.log_softmax(2) for model in made]
    real = [(0, j) for j in range(1, 5)] + [(1, j) for j in range(1, 3)]  # neither [CLS], [SEP] nor padding
    expected = sum((t[place].exp() * (t[place] - s[place])).sum().item() for place in real) / len(real)
    assert value == pytest.approx(expected, rel=1e-4)


def test_from_a_file_to_a_student_that_finds_entities(tmp_path, bare):
    names, places = ["king", "who"], ["river", "city"]
    draw, rows = random.Random(0), []
    for _ in range(40):
        words = [draw.choice(["the", "of", draw.choice(names), draw.choice(places)]) for _ in range(draw.randint(3, 9))]
        tags = ["B-PER" if word in names else "B-LOC" if word in places else "O" for word in words]
        rows.append({"tokens": " ".join(words), "tags": " ".join(tags)})
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    fast = {"learning_rate": 3e-3, "num_train_epochs": 8, "per_device_train_batch_size": 8}
    files = {"teacher": bare, "train_file": file, "validation_file": file, "teacher_cache": tmp_path / "c"}
    options = {**files, "teacher_training": json.dumps(fast), **fast}
    record = run(*arguments(tmp_path, "tag/l3-itrd-kd", **options), "mine")
    assert record.metrics["teacher"]["f1"] > 90 and record.metrics["student"]["f1"] > 90 and record.stored_teacher
    folder = str(tmp_path / "out" / "student")
    config = AutoModelForTokenClassification.from_pretrained(folder).config
    assert [*config.id2label.values()] == ["B-LOC", "B-PER", "O"]
    again = ["--task", "tagging", "--teacher", folder, "--validation_file", str(file), "--use_cpu", "true"]
    assert evaluate_saved(*parse(None, again)) == record.metrics["student"]


def test_empty_sentences_are_left_out(tokenizer):
    """As some data sets of the Hub end with one."""
    rows = ROWS._replace(texts=[[*ROWS.texts[0], [], ""]], labels=[*ROWS.labels, [], None])
    for split in range(2):
        task = TaggingTask(tokenizer, *[rows if i == split else ROWS for i in range(2)])
        assert len(task.train_dataset) == len(task.eval_dataset) == len(ROWS.texts[0])
        assert "2 without words left out" in task.describe()[split]
    alone = TaggingTask(tokenizer, rows, ROWS, task_weight=0)
    assert "labels" in alone.train.column_names and len(alone.train) == len(ROWS.texts[0])
    wrong = ROWS._replace(texts=[[[], ["a"], ["a"]]], labels=[[], ["O"], ["O", "B-X"]])
    with pytest.raises(UserError, match="row 2 of 'a.jsonl' has 1 words and 2 tags"):  # counted with the empty ones
        TaggingTask(tokenizer, wrong, None)


@pytest.mark.parametrize(
    "rows,words",
    [
        (ROWS._replace(labels=[["O"], ["O"]]), "row 0 of 'a.jsonl' has 3 words and 1 tags: expected one tag per word"),
        (ROWS._replace(labels=[["O"] * 3, ["Q"]]), "row 1 of 'a.jsonl' has the label 'Q'"),
        (ROWS._replace(texts=[[[], ["a"]]]), "row 0 of 'a.jsonl' has 0 words and 3 tags: expected one tag per word"),
        (ROWS._replace(texts=[[[], ""]], labels=[[], None]), "has no labels to score a model by"),
        (ROWS._replace(texts=[[["a", 1, "b"], ["c"]]]), "row 0 of 'a.jsonl': expected words"),
        (ROWS._replace(texts=[["the king", 7]]), "row 1 of 'a.jsonl': expected words, found 7"),
        (ROWS._replace(texts=[[["a", "\ud83e"], ["c"]]]), "row 0 of 'a.jsonl': expected words"),
        (ROWS._replace(labels=None), "has no labels to score a model by"),
    ],
)
def test_wrong_rows_are_one_line(tokenizer, rows, words):
    with pytest.raises(UserError, match=words) as error:
        TaggingTask(tokenizer, ROWS, rows)
    assert "\n" not in str(error.value)


def test_unlabelled_sentences_serve_to_distil(tokenizer):
    task = TaggingTask(tokenizer, ROWS, None)
    assert task.labelled and "labels" in task.train_dataset.column_names
    bare = task._features(task.to_dataset(ROWS._replace(labels=None)))
    assert "labels" not in bare.column_names and bare["special_tokens_mask"][1] == [1, 0, 0, 1]
