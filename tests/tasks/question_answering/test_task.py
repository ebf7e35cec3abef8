"""Loading questions, cutting them into windows, and the task around them."""

import copy
import json
import logging
import math
import random

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerFast

from itrd_nlp.tasks.question_answering.data import load_squad, read_questions
from itrd_nlp.tasks.question_answering.scores import normalize_answer
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.tasks.question_answering.windows import label
from itrd_nlp.utils.errors import UserError

CONTEXT = "The king was in the river house. The king of the city, Ångström 🦊, was in 1066."
YEARS = {"text": ["1066", "in 1066"], "answer_start": [CONTEXT.index("1066"), CONTEXT.index("in 1066")]}
ROWS = [
    {"id": "q1", "question": "Who?", "context": CONTEXT, "answers": {"text": ["king"], "answer_start": [4]}},
    {"id": "q2", "question": "When?", "context": CONTEXT, "answers": YEARS},
]


@pytest.fixture(params=["wordpiece", "bytes"])
def tokenizers(request, tokenizer):
    """BERT's kind, and RoBERTa's: tokens of one byte, several to a character, without token types."""
    if request.param == "wordpiece":
        return tokenizer
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    pieces = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, model_input_names=["input_ids", "attention_mask"], **special
    )


def dataset(rows):
    return Dataset.from_list(rows)


def synthetic(count=40, unanswerable=False):
    """Long contexts of odd words, the answer anywhere in them."""
    rng = random.Random(1)
    words = ["king", "River", "1,066", "café", "🦊🦊", "straße", "naïve-house", "東京", "l'été", "x"]
    rows = []
    for index in range(count):
        parts = [rng.choice(words) for _ in range(rng.randint(3, 150))]
        begin = rng.randrange(len(parts))
        end = min(begin + rng.randint(1, 4), len(parts))
        context = "  ".join(parts)
        start = len("  ".join(parts[:begin])) + (2 if begin else 0)
        answers = {"text": ["  ".join(parts[begin:end])], "answer_start": [start]}
        if unanswerable and index % 3 == 0:
            answers = {"text": [], "answer_start": []}
        question = " ".join(rng.choice(words) for _ in range(rng.choice([2, 5, 90])))
        rows.append({"id": str(index), "question": f" {question}?", "context": context, "answers": answers})
    return dataset(rows)


def test_moves_answers_and_drops_lost_ones_from_training_alone(tmp_path, caplog):
    def row(text, start):
        return {"question": "q", "context": "red car, red bus", "answers": {"text": [text], "answer_start": [start]}}

    rows = [row("red", 8), row("red", 3), row("red", 99), row("green", 0), row("bus", -5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        data = load_squad(train_file=str(tmp_path / "a.jsonl"), validation_file=str(tmp_path / "a.jsonl"))
    train, validation, skipped = data
    assert [row["answer_start"] for row in train["answers"]] == [[9], [0], [9], [13]]
    assert [row["answer_start"] for row in validation["answers"]] == [[9], [0], [9], [-1], [13]]
    assert validation["answers"][3]["text"] == ["green"]
    assert "dropped 1 of 5 questions" in caplog.text
    assert skipped == {"training questions without their answer in the context": 1}
    assert train["id"][:] == ["0", "1", "2", "4"]


def test_questions_need_no_answers(tmp_path):
    questions = [{name: row[name] for name in ("id", "question")} for row in ROWS]
    content = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_questions(str(tmp_path / "a.json"))["id"][:] == ["q1", "q2"]
    with pytest.raises(UserError, match="row 0 of .* expected answers, found none"):
        load_squad(train_file=str(tmp_path / "a.json"))
    (tmp_path / "a.csv").write_text("question\nq\n")
    with pytest.raises(UserError, match="lacks the columns context; found question: rename"):
        read_questions(str(tmp_path / "a.csv"))


ROW = '{"question": "q", "context": "c c", "answers": '


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": 1}\n{"a": 2}', "lacks the columns question, context, answers"),
        ("a.json", "[]", "holds no questions"),
        ("a.jsonl", "\n", "holds no questions"),
        (
            "a.csv",
            "id,question\n1,q\n",
            r"lacks the columns context, answers \(or answer_text, or answer\); found id, question",
        ),
        ("a.csv", 'question,context,answers\nq,c,"{1"\n', "row 0 of .* are not of the form"),
        ("a.csv", "question,context,answer,answer_start\nq,c,c,first\n", "row 0 of .*whole number as answer_start"),
        ("a.jsonl", '{"question": null, "context": "c", "answers": []}', "expected text in column 'question'"),
        ("a.jsonl", '{"question": "\\ud83e", "context": "c", "answers": []}', "half a character in column 'question'"),
        ("a.jsonl", ROW + '{"text": ["c"], "answer_start": []}}', "are not of the form"),
        ("a.jsonl", ROW + '{"text": ["z"], "answer_start": [0]}}', "holds no usable question"),
    ],
)
def test_refuses_bad_files_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_squad(train_file=str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_refuses_what_is_not_there(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(UserError, match="does not exist; did you mean 'train.json'"):
        load_squad(train_file=str(tmp_path / "trian.json"))
    with pytest.raises(UserError, match="there is no folder"):
        load_squad(train_file=str(tmp_path / "nowhere" / "train.json"))
    with pytest.raises(UserError, match="no data given"):
        load_squad()
    with pytest.raises(UserError, match="'squad' has no namespace.*'rajpurkar/squad'"):
        load_squad("squad")
    with pytest.raises(UserError, match="could not be loaded: check its name.*the network") as caught:
        load_squad("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_says_what_a_file_lacks(tmp_path, caplog):
    file = tmp_path / "a.csv"
    file.write_text("question,context,answer\nq,c d,c\nq,c d,\nq,c d,z\n")
    load_squad(validation_file=str(file))
    assert "1 of 3 questions of" in caplog.text and "empty answer" in caplog.text
    assert "1 of 3 questions of" in caplog.text and "not in their context, the first with the id '2'" in caplog.text


def test_refuses_one_id_for_two_validation_questions(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROWS[0], ROWS[0]]))
    with pytest.raises(UserError, match="same id"):
        load_squad(validation_file=str(tmp_path / "a.json"))


def test_labels_decode_to_the_answer(tokenizers):
    data = synthetic()
    task = SquadTask(tokenizers, data, data, max_length=192, doc_stride=96)
    kept = ["input_ids", "start_positions", "end_positions"]
    windows = [
        [tuple(map(str, row.values())) for row in d.select_columns(kept)]
        for d in (task.train_dataset, task.eval_dataset)
    ]
    assert sorted(windows[0]) == sorted(windows[1])
    assert task.eval_dataset["length"][:] == sorted(task.train_dataset["length"], reverse=True)
    answered = set()
    for window in task.eval_dataset:
        row = data[window["example_index"]]
        assert window["length"] == len(window["input_ids"]) <= 192
        first, last = window["start_positions"], window["end_positions"]
        if first == window["null_position"]:
            assert last == first == 0
            continue
        span = row["context"][window["char_starts"][first] : window["char_ends"][last]]
        assert span == row["answers"]["text"][0]
        answered.add(row["id"])
    assert len(answered) == len(data)
    assert len(task.eval_dataset) > 2 * len(data) and task.eval_examples == len(data)


def test_windows_cover_the_context_and_overlap(tokenizer):
    context = " ".join("x" for _ in range(100))
    row = {"id": "1", "question": "who", "context": context, "answers": {"text": [], "answer_start": []}}
    task = SquadTask(tokenizer, None, dataset([row]), max_length=32, doc_stride=8)
    pieces = sorted([start for start in window["char_starts"] if start >= 0] for window in task.eval_dataset)
    assert {start for piece in pieces for start in piece} == set(range(0, 200, 2))
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert len(set(before) & set(after)) == 8


def test_long_questions_are_cut_to_a_quarter_of_the_window(tokenizer):
    row = ROWS[0] | {"question": "x " * 500}
    window = SquadTask(tokenizer, dataset([row]), None, max_length=64, doc_stride=32).train_dataset[0]
    assert window["token_type_ids"].count(0) == 16 + 2  # CLS and SEP
    row = ROWS[0] | {"question": "x " * 500}
    window = SquadTask(tokenizer, dataset([row]), None, max_length=512, doc_stride=32).train_dataset[0]
    assert window["token_type_ids"].count(0) == 64 + 2


def test_training_has_no_window_without_context(tokenizer):
    empty = {"id": "e", "question": "who?", "context": "  ", "answers": {"text": [], "answer_start": []}}
    task = SquadTask(tokenizer, dataset([empty, ROWS[0]]), dataset([empty, ROWS[0]]))
    assert len(task.train_dataset) == 1
    zeros = np.zeros((2, len(task.eval_dataset), 384))
    assert task.answers(*zeros)["e"].text == ""


def test_answer_outside_its_context_is_labelled_null(tokenizer):
    row = ROWS[0] | {"answers": {"text": ["lost"], "answer_start": [-1]}}
    window = SquadTask(tokenizer, None, dataset([row])).eval_dataset[0]
    assert (window["start_positions"], window["end_positions"]) == (0, 0)


def test_collator_pads_to_a_multiple_of_eight(tokenizer):
    task = SquadTask(tokenizer, dataset(ROWS), dataset(ROWS))
    for data in (task.train_dataset, task.eval_dataset):
        batch = next(iter(DataLoader(data, batch_size=2, collate_fn=task.collator)))
        width = math.ceil(max(data["length"]) / 8) * 8
        for name in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
            assert batch[name].shape == (2, width)
        assert batch["attention_mask"].sum(1).tolist() == data["length"][:]
        assert batch["special_tokens_mask"][0, -1] == 1
        assert batch["start_positions"].tolist() == data["start_positions"][:]
        assert set(batch) == {*tokenizer.model_input_names, "special_tokens_mask", "start_positions", "end_positions"}


def oracle(task):
    """Logits that name the label of each window, -100 beyond it, as the Trainer gathers them."""
    data = task.eval_dataset
    logits = np.full((2, len(data), max(data["length"]) + 5), -100.0, dtype=np.float32)
    for row, window in enumerate(data):
        logits[:, row, : window["length"]] = 0.0
        logits[0, row, window["start_positions"]] = logits[1, row, window["end_positions"]] = 10.0
    return tuple(logits)


def test_perfect_logits_give_perfect_scores(tokenizer):
    task = SquadTask(tokenizer, None, dataset(ROWS), max_length=64, doc_stride=16)
    assert task.compute_metrics(EvalPrediction(predictions=oracle(task), label_ids=None)) == {
        "exact_match": 100.0,
        "f1": 100.0,
        "total": 2,
    }
    answers = task.answers(*oracle(task))
    assert answers["q2"].text == "1066"
    assert CONTEXT[answers["q2"].start : answers["q2"].end] == "1066"


def test_the_questions_to_score_decide_whether_there_may_be_no_answer(tokenizer):
    """As `itrd evaluate` sees them, without the training data."""
    with_none, all_answered = synthetic(30, unanswerable=True), synthetic(30)
    assert not SquadTask(tokenizer, with_none, all_answered, max_length=256).has_unanswerable
    assert SquadTask(tokenizer, all_answered, with_none, max_length=256).has_unanswerable
    assert SquadTask(tokenizer, with_none, None, max_length=256).has_unanswerable


def test_perfect_logits_on_questions_without_an_answer(tokenizer):
    data = synthetic(30, unanswerable=True).filter(lambda row: len(row["context"]) < 150)
    task = SquadTask(tokenizer, None, data, max_length=256, doc_stride=32)
    assert task.has_unanswerable
    scores = task.compute_metrics(EvalPrediction(predictions=oracle(task), label_ids=None))
    assert {scores[name] for name in ("exact_match", "HasAns_f1", "NoAns_f1", "best_f1")} == {100.0}
    deaf = SquadTask(tokenizer, None, data, max_length=256, doc_stride=32, null_threshold=100.0)
    scores = deaf.compute_metrics(EvalPrediction(predictions=oracle(deaf), label_ids=None))
    assert (scores["HasAns_exact_match"], scores["NoAns_exact_match"], scores["best_exact_match"]) == (
        100.0,
        0.0,
        100.0,
    )


def test_a_threshold_found_on_validation_reaches_the_best_score(tokenizer):
    data = synthetic(40, unanswerable=True).map(lambda row: {"context": row["context"][:200]})
    task = SquadTask(tokenizer, None, data, max_length=256, doc_stride=32)
    logits = np.random.default_rng(0).normal(size=(2, len(task.eval_dataset), 256))
    found = task.compute_metrics(EvalPrediction(predictions=tuple(logits), label_ids=None))
    task.null_threshold = found["best_f1_threshold"]
    again = task.compute_metrics(EvalPrediction(predictions=tuple(logits), label_ids=None))
    assert again["f1"] == pytest.approx(found["best_f1"])
    assert again["f1"] > found["f1"]


def test_a_task_without_validation_cannot_predict(tokenizer):
    task = SquadTask(tokenizer, dataset(ROWS), None)
    assert task.eval_dataset is None
    with pytest.raises(UserError, match="no validation questions"):
        task.answers(np.zeros((1, 4)), np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"padding_side": "left"}, {}, "pads on the left: load it with padding_side='right'"),
        ({"pad_token": None}, {}, "has no padding token"),
        ({}, {"n_best": 0}, "n_best 0: expected 1 or more"),
        ({}, {"max_answer_length": 0}, "max_answer_length 0: expected 1 or more"),
        ({"model_max_length": 128}, {"max_length": 384}, "max_length 384 exceeds the model's 128 tokens"),
        ({}, {"max_length": 64, "doc_stride": 45}, "doc_stride 45 does not fit max_length 64.*45 tokens.*0 to 44"),
        ({}, {"doc_stride": -1}, "doc_stride -1 does not fit"),
    ],
)
def test_refuses_settings_that_cannot_work(tokenizer, change, settings, message):
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(UserError, match=message):
        SquadTask(tokenizer, dataset(ROWS), None, **settings)


@pytest.mark.parametrize("question", ["x " * 500, "x" + "🦊" * 100])
def test_the_largest_overlap_that_is_let_through_works(tokenizers, question):
    row = ROWS[0] | {"question": question, "context": CONTEXT * 3}
    overlap = 64 - 64 // 4 - tokenizers.num_special_tokens_to_add(pair=True) - 1
    assert len(SquadTask(tokenizers, dataset([row]), None, max_length=64, doc_stride=overlap).train_dataset) > 1


def test_refuses_a_slow_tokenizer(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow is a slow tokenizer"):
        SquadTask(Slow(), dataset(ROWS), None)


def test_features_train_a_model(tokenizer, tiny_bert):
    task = SquadTask(tokenizer, dataset(ROWS), None)
    batch = next(iter(DataLoader(task.train_dataset, batch_size=2, collate_fn=task.collator)))
    del batch["special_tokens_mask"]
    loss = tiny_bert(**batch).loss
    assert torch.isfinite(loss)
    assert loss > 0


def test_tokenising_is_kept_for_the_same_questions_and_settings(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = synthetic()

    def rows_and_files(data, tokenizer=tokenizer, **settings):
        rows = SquadTask(tokenizer, data, None, **settings).train_dataset.to_list()
        return rows, {path.name for path in (tmp_path / "itrd_nlp").iterdir()}

    rows, files = rows_and_files(data)
    assert rows_and_files(synthetic()) == (rows, files) and len(files) == 1
    split, parts = rows_and_files(data.select(range(39)), num_proc=2)
    assert split == rows[: len(split)] and len(parts) > len(files)
    assert len(rows_and_files(data, max_length=64)[1]) == len(parts) + 1
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["straße"])
    assert len(rows_and_files(data, other)[1]) == len(parts) + 2


def test_marks_that_a_tokenizer_strips_do_not_hide_an_answer_at_a_window_s_end():
    offsets = np.array([[-1, -1], [0, 3], [4, 8]])  # of "the cafe", without the accent that follows
    answers = {"text": ["cafe\u0301"], "answer_start": [4]}
    assert label(answers, offsets, 0) == (2, 2)


def test_labels_of_real_data_decode_to_the_answers(shared):
    _, data, _ = load_squad(validation_file=str(shared / "data" / "squad" / "validation.json"))
    tokenizer = pytest.importorskip("itrd_nlp.tasks.toy").build_tokenizer()  # cuts unknown words into letters
    data = data.select(range(0, len(data), 40))
    task = SquadTask(tokenizer, None, data, max_length=128, doc_stride=64)
    rows = [window for window in task.eval_dataset if window["start_positions"] != window["null_position"]]
    right = 0
    for window in rows:
        row = data[window["example_index"]]
        first, last = window["char_starts"][window["start_positions"]], window["char_ends"][window["end_positions"]]
        right += normalize_answer(row["context"][first:last]) == normalize_answer(row["answers"]["text"][0])
    assert right == len(rows) > 20
