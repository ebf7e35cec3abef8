"""Reranking: from a file of queries and documents to a student that orders them."""

import csv
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import tiny
from itrd_nlp import rerank
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.dry_run import dry_run
from itrd_nlp.experiments.evaluation import evaluate_saved, with_task
from itrd_nlp.experiments.intervals import compare_examples, examples_of
from itrd_nlp.experiments.models import check_scores, load_model
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.inference.saved_models import saved_task
from itrd_nlp.inference.texts import TextModel, classify
from itrd_nlp.losses.base import GROUP
from itrd_nlp.models.classes import RAW_SCORES
from itrd_nlp.tasks.reranking.metrics import ranking_scores
from itrd_nlp.tasks.reranking.rows import DOCUMENT_COLUMNS
from itrd_nlp.tasks.reranking.task import RerankingTask
from itrd_nlp.tasks.rows import Rows, load_rows
from itrd_nlp.tasks.teacher_files import check_columns
from itrd_nlp.tasks.text_classification import RegressionTask
from itrd_nlp.utils.errors import UserError
from tasks.test_text_classification import arguments as run_arguments

QUERIES = {"who was the king": "the king of the city", "where is the river": "in the house of the king"}
CROSS_ENCODER = {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}  # as published
OTHERS = ["the city is to the house", "and the and", "was in the city", "who was to the"]


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def learnable(path, copies=6):
    """Rows of several queries in a mixed order; the relevant document of each is the one about a king."""
    rows = []
    for i in range(copies):
        for query, answer in QUERIES.items():
            rows += [(f"{query} {i}", answer, 1)]
            rows += [(f"{query} {i}", OTHERS[(i + k) % 4], 0) for k in range(2)]
    random.Random(0).shuffle(rows)
    return write(path, ["query", "document", "label"], rows)


def scorer(folder, tokenizer, **fields):
    torch.manual_seed(0)
    config = tiny.config(
        layers=4, vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.4, **fields
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def arguments(tmp_path, recipe, file, teacher, **options):
    files = {"teacher": teacher, "train_file": file, "validation_file": file}
    return run_arguments(tmp_path, recipe, **files | options)


def logits(folder, query, documents, column=0):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"padding": True, "truncation": "only_second", "max_length": 256, "return_tensors": "pt"}
    with torch.no_grad():
        return model(**tokenizer([query] * len(documents), documents, **options)).logits[:, column].tolist()


# metrics


def by_hand(scores, labels):
    """NDCG@10, MRR@10 and average precision of one query, the worst order of equal scores."""
    ranked = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda pair: (-pair[0], pair[1]))]
    gain = sum(label / math.log2(i + 2) for i, label in enumerate(ranked[:10]))
    best = sum(label / math.log2(i + 2) for i, label in enumerate(sorted(labels, reverse=True)[:10]))
    places = [i for i, label in enumerate(ranked) if label > 0]
    precisions = [(n + 1) / (place + 1) for n, place in enumerate(places)]
    return [gain / best, 1 / (places[0] + 1) if places[0] < 10 else 0.0, sum(precisions) / len(precisions)]


@pytest.mark.parametrize("seed", range(20))
def test_metrics_are_their_formulas(seed):
    draw = np.random.default_rng(seed)
    groups = draw.permutation(np.repeat(np.arange(9), draw.integers(1, 30, 9)))
    scores = draw.integers(0, 5, len(groups)).astype(float) if seed % 2 else draw.normal(size=len(groups))
    labels = draw.integers(0, 2 + seed % 3, len(groups)).astype(float) * (draw.random(len(groups)) < 0.2)
    with_relevant = [g for g in range(9) if labels[groups == g].any()]
    expected = [by_hand(scores[groups == g], labels[groups == g]) for g in with_relevant]
    found = ranking_scores(scores, labels, groups)
    assert [*found] == ["ndcg@10", "mrr@10", "map"]
    for name, values in zip(found, zip(*expected, strict=True), strict=True):
        assert found[name] == pytest.approx(100 * np.array(values))
    order = draw.permutation(len(groups))
    again = ranking_scores(scores[order], labels[order], groups[order])
    assert all(again[name] == pytest.approx(found[name]) for name in found)  # no metric depends on the order of rows


def test_equal_scores_gain_nothing():
    labels, groups = np.array([1.0, 0, 0, 0, 1]), np.array([0, 0, 0, 0, 1])
    found = ranking_scores(np.zeros(5), labels, groups)
    assert found["mrr@10"] == [25, 100] and found["map"] == [25, 100]
    assert found["ndcg@10"] == pytest.approx([100 / math.log2(5), 100])


# rows


def test_both_layouts_give_the_same_groups_and_batches_keep_them(tmp_path, tokenizer):
    labelled = write(
        tmp_path / "a.csv",
        ["label", "document", "query"],
        [(1, "the king", "who"), (0, "a house", "who"), (1, "a river", "where"), (0, "the king", "where")],
    )
    split = tmp_path / "b.jsonl"
    rows = [
        {"query": "who", "positive": "the king", "negative": "a house"},
        {"query": "where", "positive": "a river", "negative": "the king"},
        {"query": "who", "positive": "the king", "negative": "a house"},  # the same again
    ]
    split.write_text("\n".join(map(json.dumps, rows)))
    tasks = []
    for file in (labelled, str(split)):
        train, _ = load_rows(None, None, file, None, DOCUMENT_COLUMNS)
        tasks.append(RerankingTask(tokenizer, train, None))
    for task in tasks:
        assert task.train["text"][:] == ["who", "who", "where", "where"]
        assert task.train["labels"][:] == [[1.0], [0.0], [1.0], [0.0]] and task.train[GROUP][:] == [0, 0, 1, 1]
        assert task.config_fields["problem_type"] == "multi_label_classification"
        batch = task.collator([task.train_dataset[i] for i in range(4)])
        assert batch[GROUP].tolist() == [0, 0, 1, 1] and batch["labels"].shape == (4, 1)
    assert tasks[0].describe() == [f"{labelled}: 4 rows, reranking, 2 queries, 2 relevant documents"]


def read(tmp_path, header, *rows, columns=DOCUMENT_COLUMNS):
    return load_rows(None, None, write(tmp_path / "r.csv", header, rows), None, columns)[0]


@pytest.mark.parametrize("names", [("negative", "negative_2"), ("negative_1", "negative_2"), ("negative", "neg")])
def test_several_negatives_a_row(tmp_path, names):
    rows = read(tmp_path, ["query", "positive", *names], ("q", "p", "n1", "n2"), ("q", "p", "n3", ""))
    assert rows.texts == [["q"] * 4, ["p", "n1", "n2", "n3"]] and rows.labels == [1, 0, 0, 0]


def test_lists_of_documents_and_documents_that_are_both(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"query": "q", "pos": ["p", "x"], "neg": ["n", "x"]}\n')
    rows, _ = load_rows(None, None, str(path), None, DOCUMENT_COLUMNS)
    assert dict(zip(rows.texts[1], rows.labels, strict=True)) == {"p": 1, "x": 1, "n": 0}
    assert "1 documents both positive and negative" in rows.unused
    header = ["query", "positive", "negative", "teacher_score"]
    rows = read(tmp_path, header, ("q", "p", "n", "1"))
    assert rows.unused == "not read: teacher_score (only for rows of one query and one document)"
    with pytest.raises(UserError, match=r"has no column teacher_score: .* \(not read: teacher_score \(only for"):
        check_columns(rows, ["teacher_score"])
    rows = read(tmp_path, ["query", "positive", "negatives"], ("q", "[a] list", '["n", "m"]'))
    assert rows.texts[1] == ["[a] list", "n", "m"]


def test_a_document_that_stands_twice_for_its_query_counts_once(tmp_path, tokenizer):
    header, rows = ["query", "document", "label"], [("q", "d", 1), ("q", "n", 0), ("q", "d", 1), ("q", "n", 2)]
    given = read(tmp_path, [*header, "teacher_score"], *((*row, i) for i, row in enumerate(rows)))
    task = RerankingTask(tokenizer, given, given)
    assert len(task.train) == 4 and task.validation["text_pair"][:] == ["d", "n"]
    assert task.validation["labels"][:] == [[1.0], [2.0]]
    assert task.teacher_prediction().predictions[task.order.argsort()].tolist() == [[0.0], [3.0]]
    assert "; 2 that repeat another left out" in task.describe()[1] and "repeat" not in task.describe()[0]


def test_columns_of_other_names(tmp_path):
    named = DOCUMENT_COLUMNS._replace(text="frage", text_pair="satz", label="note")
    rows = read(tmp_path, ["frage", "satz", "note"], ("q", "d", "3"), columns=named)
    assert rows.texts == [["q"], ["d"]] and rows.labels == ["3"]
    rows = read(tmp_path, ["query", "document", "score", "relevance"], ("q", "d", "17.3", "0"))
    assert rows.labels == ["0"] and rows.unused == "not read: score"  # which may be a retriever's
    rows = read(
        tmp_path, ["frage", "positive", "negative"], ("q", "p", "n"), columns=DOCUMENT_COLUMNS._replace(text="frage")
    )
    assert rows.texts == [["q", "q"], ["p", "n"]]


def test_graded_scores_are_learned_by_their_squared_error(tokenizer):
    rows = Rows("a.csv", [["q", "q", "who"], ["a", "b", "c"]], ["0.5", "3", "0"])
    task = RerankingTask(tokenizer, rows, rows)
    assert task.config_fields["problem_type"] == "regression"
    assert "3 rows, reranking, 2 queries, 2 relevant documents, scores from 0 to 3" in task.describe()[0]
    assert "validation queries without a relevant document, left out of the scores: 1" in task.describe()


def test_counts_are_of_queries(tokenizer):
    rows = Rows("a.csv", [["q", "who", "q", "is", "who"], list("abcde")], [1, 1, 0, 1, 0])
    task = RerankingTask(tokenizer, rows, rows, train_count=2, eval_count=1)
    assert task.train["text_pair"][:] == ["a", "b", "c", "e"] and task.validation["text_pair"][:] == ["a", "c"]
    assert task.summary() == {
        "training queries": 2,
        "training documents": 4,
        "validation queries": 1,
        "validation documents": 2,
    }


def test_the_document_is_cut_never_the_query(tokenizer):
    query, document = "who was the king of the city", "in the house " * 40
    task = RerankingTask(tokenizer, Rows("a.csv", [[query], [document]], [1]), None, max_length=16)
    row = task.train_dataset[0]
    ids = tokenizer(query, add_special_tokens=False)["input_ids"]
    assert len(row["input_ids"]) == 16 and row["input_ids"][1 : 1 + len(ids)] == ids
    assert sum(row["token_type_ids"]) == 16 - len(ids) - 2
    with pytest.raises(UserError, match=r"'a.csv' has a query of 7 tokens, 'who was.*: expected fewer than 6"):
        RerankingTask(tokenizer, Rows("a.csv", [[query], [document]], [1]), None, max_length=9)


GOOD = Rows("a.csv", [["q", "q"], ["a", "b"]], [1, 0])


@pytest.mark.parametrize(
    "rows,words",
    [
        (GOOD._replace(texts=[["q", " "], ["a", "b"]]), "row 1 of 'a.csv' has the query ' ': expected text"),
        (GOOD._replace(texts=[["q", "q"], ["", "b"]]), "row 0 of 'a.csv' has the document '': expected text"),
        (GOOD._replace(texts=[["q", "q"], ["a", math.nan]]), "row 1 of 'a.csv': expected text, found nan"),
        (GOOD._replace(labels=["1", "good"]), "row 1 of 'a.csv' has the score 'good': expected a number"),
        (GOOD._replace(labels=[1, -1]), "row 1 of 'a.csv' has the relevance -1: expected 0 or more"),
        (GOOD._replace(labels=[0, 0]), "'a.csv' has no relevant document"),
        (GOOD._replace(labels=None), "'a.csv' has no labels to score a model by"),
    ],
)
def test_wrong_rows_are_one_line(tokenizer, rows, words):
    with pytest.raises(UserError, match=words) as error:
        RerankingTask(tokenizer, None, rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header,row,words",
    [
        (("qery", "document", "label"), ("q", "d", 1), "expected query, document and label.*did you mean 'qery'"),
        (("query", "documnt", "label"), ("q", "d", 1), "did you mean 'documnt'"),
        (("query", "positive"), ("q", "p"), "expected query, document and label; or query, positive and negative"),
        (("qery", "positive", "negative"), ("q", "p", "n"), "expected one of queries.*did you mean 'qery'"),
        (("query", "positive", "negative"), ("q", "p", ""), "row 0 of .* has no negative document"),
        (("query", "positive", "negative"), ("q", "", "n"), "row 0 of .* has no positive document"),
        (("query", "positive", "negative"), (" ", "p", "n"), "row 0 of .* has the query ' '"),
        (("query", "positive", "negative"), ("q", "p", "  "), "row 0 of .* has the negative '  '"),
        (("query", "positive", "negatives"), ("q", "p", "['a' b]"), "expected a list such as"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path, header, row, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, header, row)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"label": "label"}, "label_column 'label' with .* say what is relevant"),
        ({"text": "query", "text_pair": "positve"}, "did you mean 'positive'|expected query and positve"),
    ],
)
def test_wrong_column_arguments_are_one_line(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, ("query", "positive", "negative"), ("q", "p", "n"), columns=DOCUMENT_COLUMNS._replace(**change))
    with pytest.raises(UserError, match="text_column 'query' alone: expected --text_pair_column"):
        read(tmp_path, ("query", "document", "label"), ("q", "p", 1), columns=DOCUMENT_COLUMNS._replace(text="query"))


def test_without_scikit_learn_it_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(UserError, match=r"task reranking needs scikit-learn: pip install 'itrd_nlp\[reranking\]'"):
        RerankingTask(tokenizer, None, GOOD)
    RerankingTask(tokenizer, GOOD, None)  # nothing to score


# runs

FAST = {"num_train_epochs": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 12}


@pytest.mark.parametrize("losses", [pytest.param("itrd-listwise", marks=pytest.mark.slow), "mse"])
def test_from_a_file_to_a_student_in_one_call(tmp_path, bare, capsys, losses):
    file = learnable(tmp_path / "my.csv")
    # bf16 trains, fp32 evaluates: two precisions in one process
    options = {**FAST, "teacher_training": json.dumps(FAST), "teacher_cache": tmp_path / "cache", "bf16": True}
    record = run(*arguments(tmp_path, f"rerank/l3-{losses}", file, bare, **options), "mine")
    assert record.metric_names[-1] == "ndcg@10" and record.data["training queries"] == 12
    assert record.metrics["teacher"]["ndcg@10"] > 85 and record.metrics["student"]["ndcg@10"] > 85
    for role, scores in record.examples.items():
        assert len(scores["ndcg@10"]) == record.metrics[role]["total"] == 12
        assert np.mean(scores["ndcg@10"]) == pytest.approx(record.metrics[role]["ndcg@10"])
    difference, interval = compare_examples(examples_of([record], "student"), examples_of([record], "baseline"))
    differences = np.subtract(*(record.examples[row]["ndcg@10"] for row in ("student", "baseline")))
    assert difference == pytest.approx(differences.mean())
    assert (interval is None) == (np.ptp(differences) == 0)  # both may rank every query alike
    assert record.stored_teacher
    assert set(record.terms["student"][-1]) >= ({"task", "listwise"} if losses != "mse" else {"task", "kd"})

    folder = str(tmp_path / "out" / "student")
    assert saved_task(folder) == "reranking"
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity"}
    again = parse(None, ["--task", "reranking", "--teacher", folder, "--validation_file", file, "--use_cpu", "true"])
    assert evaluate_saved(*again) == record.metrics["student"]

    query, documents = "who was the king", [OTHERS[2], QUERIES["who was the king"], OTHERS[1]]
    ranked = rerank(folder, query, documents)
    expected = logits(folder, query, documents)
    assert [each.score for each in ranked] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    assert [expected[each.index] for each in ranked] == sorted(expected, reverse=True)
    assert [each.document for each in ranked] == [documents[each.index] for each in ranked]
    assert ranked[0].index == 1
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert "pipeline_tag: text-ranking" in card and "NDCG@10" in card and "CrossEncoder(" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"student"', repr(folder))
    capsys.readouterr()
    exec(code, {})
    assert "Ada wrote it in 1843." in capsys.readouterr().out


def test_a_student_of_longer_texts_reads_as_many_tokens_as_it_was_trained_on(tmp_path, bare, capsys):
    same = "and the " * 140  # documents differ behind the 280th token
    rows = [
        (f"{query} {i}", same + text, int(text == answer))
        for i in range(3)
        for query, answer in QUERIES.items()
        for text in (answer, *OTHERS[:2])
    ]
    file = write(tmp_path / "long.csv", ["query", "document", "label"], rows)
    options = {"max_length": 320, "max_steps": 1, "teacher_training": '{"max_steps": 1}', "baseline": False}
    record = run(*arguments(tmp_path, "rerank/l3-mse", file, bare, **options))
    folder = str(tmp_path / "out" / "student")
    assert TextModel(folder).max_length == 320
    capsys.readouterr()
    words = ["--validation_file", file, "--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true"]
    assert main(["evaluate", folder, *words]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :]) == pytest.approx(record.metrics["student"])
    assert with_task(folder, []) == ["--task", "reranking", "--max_length", "320"]
    assert with_task(folder, ["--max_length=64"]) == ["--max_length=64", "--task", "reranking"]
    assert with_task(folder, ["--task", "regression"]) == ["--task", "regression"]


@pytest.mark.parametrize("columns", [("query", "document"), ("query", "document", "label")])
def test_scores_in_a_file_give_the_losses_of_the_reranker_that_made_them(tmp_path, tokenizer, columns):
    file = learnable(tmp_path / "my.csv", copies=2)
    teacher = scorer(tmp_path / "teacher", tokenizer, num_labels=1)
    student = scorer(tmp_path / "student", tokenizer, num_labels=1, hidden_size=16)
    rows = list(csv.DictReader(Path(file).read_text().splitlines()))
    scored = tmp_path / "scored.jsonl"
    scores = [logits(teacher, row["query"], [row["document"]])[0] for row in rows]
    texts = [{name: row[name] for name in columns} for row in rows]
    lines = [{**text, "teacher_score": score} for text, score in zip(texts, scores, strict=True)]
    scored.write_text("\n".join(map(json.dumps, lines)))
    terms = []
    for name, train, source in (("live", file, ["--teacher", teacher]), ("file", str(scored), [])):
        words = ["--student", student, *source, "--train_file", train, "--validation_file", file]
        words += ["--output_dir", str(tmp_path / name), "--losses", "{kd: {}, listwise: {}}", "--task_weight", "0"]
        words += "--max_steps 3 --logging_steps 1 --bf16 false --teacher_cache off".split()
        words += ["--baseline", "false", "--latency", "false"]
        record = run(*parse("rerank/soft-labels", [*words, "--use_cpu", "true", "--disable_tqdm", "true"]))
        terms.append([(step["kd"], step["listwise"]) for step in record.terms["student"] if "kd" in step])
        # a file's scores have a scale of their own, also where labels beside them are not learned
        assert ("student" in record.calibration) == (name == "live")
    assert len(terms[0]) >= 2
    np.testing.assert_allclose(terms[0], terms[1], rtol=1e-5, atol=1e-6)


def test_sentence_transformers_gives_equal_scores(tmp_path, bare):
    cross_encoders = pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed")
    file = learnable(tmp_path / "my.csv", copies=2)
    options = {"max_steps": 1, "teacher_training": '{"max_steps": 1}', "baseline": False}
    run(*arguments(tmp_path, "rerank/l3-listwise", file, bare, **options))
    folder = str(tmp_path / "out" / "student")
    query, documents = next(iter(QUERIES)), [*OTHERS, "in the house of the king " * 100]
    ours = {each.index: each.score for each in rerank(folder, query, documents)}
    theirs = cross_encoders.CrossEncoder(folder).predict([(query, text) for text in documents])
    assert [ours[i] for i in range(len(documents))] == pytest.approx(theirs.tolist(), abs=1e-5)


@pytest.mark.parametrize("losses", ["margin-mse", "itrd-mse", "itrd-margin-mse"])
def test_every_loss_trains_alike_with_cached_teacher_outputs(tmp_path, tokenizer, losses):
    file = learnable(tmp_path / "my.csv")
    teacher = scorer(tmp_path / "teacher", tokenizer, num_labels=1)
    logs = []
    for cache in ("off", tmp_path / "cache"):
        options = {"teacher_cache": cache, "teacher_cache_dtype": "float32", "baseline": False, "overwrite": True}
        options |= {"documents_per_query": 2, "per_device_train_batch_size": 8}
        record = run(*arguments(tmp_path, f"rerank/l3-{losses}", file, teacher, **options))
        assert record.stored_teacher == (cache != "off")
        logs.append([{k: v for k, v in row.items() if k != "grad_norm"} for row in record.terms["student"]])
    assert len(logs[0]) == len(logs[1]) == 6  # 12 queries of 2 drawn documents, 4 queries a batch, 2 epochs
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
        terms = [v for k, v in a.items() if k not in ("loss", "epoch", "step", "learning_rate")]
        assert a["loss"] == pytest.approx(sum(terms), rel=1e-4)


def test_a_teacher_of_two_classes_is_read_as_their_log_odds(tmp_path, tokenizer, caplog):
    teacher = scorer(tmp_path / "two", tokenizer, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    file = learnable(tmp_path / "my.csv", copies=2)
    run_args, training_args = arguments(tmp_path, "rerank/l3-mse", file, teacher, max_steps=1, baseline=False)
    task = TASKS["reranking"](run_args)
    assert f"{teacher}: two classes, read as one score: the log-odds of the second, yes" in task.describe()
    model, complete = load_model(teacher, task, 0)
    tokens = tokenizer("who was the king", "the king", return_tensors="pt")
    against, relevant = (logits(teacher, "who was the king", ["the king"], column=i) for i in range(2))
    expected = [relevant[0] - against[0]]  # grows with the probability, which the second logit alone need not
    assert complete and model(**tokens).logits[0].tolist() == pytest.approx(expected, abs=1e-6)
    record = run(run_args, training_args)
    assert "teacher" not in record.seconds and record.terms["student"][-1]["kd"] > 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student").config.num_labels == 1
    caplog.set_level("INFO")
    ranked = rerank(teacher, "who was the king", ["the river", "the king"])
    assert [each.score for each in ranked if each.index == 1] == pytest.approx(expected, abs=1e-5)
    assert "two classes, read as one score: the log-odds of the second, yes" in caplog.text


def test_unlabelled_documents_distil(tmp_path, tokenizer):
    teacher = scorer(tmp_path / "teacher", tokenizer, num_labels=1)
    rows = [(f"who {i}", text) for i in range(4) for text in OTHERS]
    unlabelled = write(tmp_path / "bare.csv", ["query", "document"], rows)
    options = {"validation_file": learnable(tmp_path / "v.csv"), "task_weight": 0, "max_steps": 2}
    record = run(*arguments(tmp_path, "rerank/l3-itrd-listwise", unlabelled, teacher, **options))
    assert {"listwise"} <= set(record.terms["student"][-1]) and "task" not in record.terms["student"][-1]
    options["output_dir"] = tmp_path / "again"
    with pytest.raises(UserError, match="margin_mse pairs documents of unequal labels"):
        run(*arguments(tmp_path, "rerank/l3-margin-mse", unlabelled, teacher, **options))
    options |= {"losses.margin_mse.pairs": "all", "baseline": False}
    run(*arguments(tmp_path, "rerank/l3-margin-mse", unlabelled, teacher, **options))


def test_a_loss_over_groups_needs_a_reranker(tmp_path, tokenizer):
    teacher = scorer(tmp_path / "teacher", tokenizer, num_labels=1)
    file = write(tmp_path / "r.csv", ["text", "score"], [("the king", 1), ("a house", 0), ("is", 2)])
    options = {"task": "regression", "losses": '{"listwise": {}}'}
    with pytest.raises(UserError, match="listwise compares the documents of a query.*--task reranking"):
        run(*arguments(tmp_path, "classify/l3-kd", file, teacher, **options))
    options = {"task": "regression", "documents_per_query": 4}
    with pytest.raises(UserError, match="documents_per_query 4: it is for data with queries"):
        run(*arguments(tmp_path, "classify/l3-kd", file, teacher, **options))


def test_a_dry_run_plans_the_draws(tmp_path, tokenizer):
    teacher = scorer(tmp_path / "teacher", tokenizer, num_labels=1)
    file = learnable(tmp_path / "my.csv")
    options = {"documents_per_query": 1, "per_device_train_batch_size": 4}
    plan = dry_run(*arguments(tmp_path, "rerank/l3-itrd-mse", file, teacher, **options))
    assert plan.rows["student"].steps == 6  # of 12 queries
    assert "draws 0.67 documents for each one that a cache would take" in plan.cache
    assert "to be written" in dry_run(*arguments(tmp_path, "rerank/l3-itrd-mse", file, teacher)).cache


# saved models


def test_predict_prints_what_rerank_says_and_a_file_its_scores(tmp_path, tokenizer, capsys):
    folder = scorer(tmp_path / "m", tokenizer, **CROSS_ENCODER)
    query = next(iter(QUERIES))
    assert main(["predict", folder, "--query", query, "--documents", *OTHERS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ranked = [vars(each) for each in rerank(folder, query, OTHERS)]
    assert [{**line, "probability": None} for line in lines] == ranked  # without a temperature there is none
    assert rerank(TextModel(folder, reranks=True), query, OTHERS) == rerank(folder, query, OTHERS)
    assert rerank(folder, query, []) == []
    file = write(tmp_path / "f.csv", ["document", "query"], [(text, query) for text in OTHERS])
    assert main(["predict", folder, "--file", file]) == 0
    scores = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert scores == pytest.approx(logits(folder, query, OTHERS), abs=1e-5)
    assert classify(folder, query, OTHERS[0])["score"] == pytest.approx(scores[0], abs=1e-5)


def test_a_file_of_documents_is_ranked_by_a_model_of_one_output(tmp_path, tokenizer, capsys):
    """As bge-reranker's, whose config says nothing: the document is cut at 512 tokens, the query never."""
    folder = scorer(tmp_path / "m", tokenizer, num_labels=1)
    query, text = " ".join(["who"] * 60), " ".join(["king"] * 300)
    file = write(tmp_path / "f.csv", ["document", "query"], [(text, query)])
    assert main(["predict", folder, "--file", file]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (ranked,) = rerank(folder, query, [text])
    assert json.loads(line)["score"] == pytest.approx(ranked.score, abs=1e-6)
    plain = write(tmp_path / "p.csv", ["text"], [(text,)])
    beside = write(tmp_path / "b.csv", ["question", "text"], [("who", text)])
    rates = scorer(tmp_path / "rates", tokenizer, num_labels=1, problem_type="regression")  # trained on texts alone
    for model, words in ((folder, [plain]), (rates, [beside]), (folder, [beside, "--text_column", "text"])):
        assert main(["predict", model, "--file", *words]) == 0
        found = json.loads(capsys.readouterr().out)["score"]
        assert found == pytest.approx(classify(model, text)["score"], abs=1e-6)


def test_a_cross_encoder_s_prompt_that_nobody_adds_is_warned_of(tmp_path, tokenizer, caplog):
    folder = scorer(tmp_path / "m", tokenizer, num_labels=1)
    fields = {"model_type": "CrossEncoder", "prompts": {"q": "query: "}, "default_prompt_name": "q"}
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(fields))
    rerank(folder, "who", ["the king"])
    assert caplog.text.count("puts 'query: ' before its texts, which nothing here does") == 1


def test_scores_that_pass_a_function_are_no_regression(tmp_path, tokenizer):
    folder = scorer(tmp_path / "m", tokenizer, **CROSS_ENCODER)
    rows = Rows("r.csv", [["a", "b"], ["c", "d"]], [0.5, 1.0], None)
    task = RegressionTask(tokenizer, rows, rows)
    with pytest.raises(UserError, match="its scores are the Sigmoid of its outputs, which --task regression compares"):
        check_scores(folder, task)
    check_scores(scorer(tmp_path / "n", tokenizer, **RAW_SCORES, num_labels=1), task)
    file = write(tmp_path / "f.csv", ["sentence1", "sentence2", "score"], [("a", "b", 0.5), ("c", "d", 1.0)])
    assert main(["evaluate", folder, "--task", "regression", "--validation_file", file]) == 2
    words = [
        "--teacher",
        folder,
        "--train_file",
        file,
        "--validation_file",
        file,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(["distill", "classify/l3-kd", "--task", "regression", *words]) == 2


@pytest.mark.parametrize(
    "words,message",
    [
        (("--query", "who"), "--query and --documents"),
        (("--documents", "the king"), "--query and --documents"),
        (("--query", "who", "--documents", " "), "document 1 of 1 is ' ': expected text"),
        (("--query", " ", "--documents", "a"), "query 1 of 1 is ' ': expected text"),
        (("--query", "who", "--documents", "a", "--text_pair", "b"), "--text_pair with --query"),
        (("--query", "who was the king of the city", "--documents", "a", "--max_length", "9"), "a query of 7 tokens"),
        (("--text", "the king"), "a text alone: this model scores a query with a document"),
        (("--query", "who", "--document", "a"), "did you mean 'documents'"),
    ],
)
def test_wrong_predictions_are_one_line(tmp_path, tokenizer, capsys, words, message):
    folder = scorer(tmp_path / "m", tokenizer, **CROSS_ENCODER)
    capsys.readouterr()  # slow disks show a bar
    assert main(["predict", folder, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_models_of_other_kinds_do_not_rerank(tmp_path, tokenizer, bare):
    three = scorer(tmp_path / "three", tokenizer, num_labels=3)
    for folder, kind in ((three, "classification"), (bare, "embedding")):
        with pytest.raises(UserError, match=f"for {kind}: expected a cross-encoder"):
            rerank(folder, "who", ["a"])
    one = TextModel(scorer(tmp_path / "one", tokenizer, num_labels=1))
    with pytest.raises(UserError, match="expected TextModel"):
        rerank(one, "who", ["a"])
    with pytest.raises(UserError, match="documents is .*: expected a list"):
        rerank(three, "who", "a")


def test_newer_versions_of_sentence_transformers_say_in_another_file_that_it_is_a_reranker(tmp_path, tokenizer):
    folder = scorer(tmp_path / "m", tokenizer, num_labels=1)
    file = tmp_path / "m" / "config_sentence_transformers.json"
    for kind, task in (("SentenceTransformer", "regression"), ("CrossEncoder", "reranking")):
        file.write_text(json.dumps({"model_type": kind, "activation_fn": "torch.nn.modules.activation.Sigmoid"}))
        assert saved_task(folder) == TextModel(folder).task == task
    assert [each.index for each in rerank(folder, "who was the king", OTHERS[:1])] == [0]
    file.write_text("{")
    with pytest.raises(UserError, match="config_sentence_transformers.json: not JSON"):
        saved_task(folder)


def test_a_student_of_another_task_is_no_reranker(tmp_path, tokenizer):
    teacher = scorer(tmp_path / "ce", tokenizer, num_labels=1, **RAW_SCORES)
    file = write(tmp_path / "r.csv", ["text", "score"], [("the king", 1), ("a house", 0), ("is", 2)])
    run(*arguments(tmp_path, "classify/l3-kd", file, teacher, task="regression", max_steps=1, baseline=False))
    assert saved_task(str(tmp_path / "out" / "student")) == "regression"


def test_two_classes_are_exported_as_one_score(tmp_path, tokenizer, capsys):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    from itrd_nlp.export import run_onnx

    folder = scorer(tmp_path / "two", tokenizer, num_labels=2)
    file, query, exported = learnable(tmp_path / "my.csv"), next(iter(QUERIES)), str(tmp_path / "out")
    options = ["--task", "reranking", "--validation_file", file, "--use_cpu", "true", "--disable_tqdm", "true"]
    assert main(["export", folder, "--output", exported, *options]) == 0
    expected = np.subtract(*(logits(folder, query, OTHERS, column=i) for i in (1, 0)))
    said = run_onnx.Model(tmp_path / "out")(query, *OTHERS)
    assert [each["score"] for each in said] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    results = []
    for source in (folder, exported):
        capsys.readouterr()
        assert main(["evaluate", source, *options]) == 0
        out = capsys.readouterr().out
        results.append(json.loads(out[out.index("{\n") :]))
    assert results[0] == pytest.approx(results[1])


@pytest.mark.slow
def test_it_is_exported_evaluated_and_measured(tmp_path, tokenizer, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    from itrd_nlp.export import run_onnx

    folder = scorer(tmp_path / "m", tokenizer, **CROSS_ENCODER)
    file, query = learnable(tmp_path / "my.csv"), next(iter(QUERIES))
    documents = [*OTHERS, "in the house of the king " * 100]
    for output, words in (("bare", ()), ("scored", ("--validation_file", file, "--disable_tqdm", "true"))):
        assert main(["export", folder, "--output", str(tmp_path / output), *words]) == 0
        script = run_onnx.Model(tmp_path / output)
        ours = rerank(folder, query, documents)
        said = script(query, *documents)
        assert [each["index"] for each in said] == [each.index for each in ours]
        assert [each["score"] for each in said] == pytest.approx([each.score for each in ours], abs=1e-4)
        exported = rerank(str(tmp_path / output), query, documents)
        assert [each.score for each in exported] == pytest.approx([each.score for each in ours], abs=1e-4)
        mistakes = {(query,): "expected documents", (query, " "): "is empty", ("who " * 600, "a"): "no room"}
        for wrong, message in mistakes.items():
            with pytest.raises(run_onnx.UserError, match=message):
                script(*wrong)
        assert "QUERY DOCUMENT" in (tmp_path / output / "README.md").read_text()
    assert "| NDCG@10 |" in capsys.readouterr().out
    options = ["--validation_file", file, "--use_cpu", "true", "--disable_tqdm", "true"]
    results = []
    for source in (folder, str(tmp_path / "scored")):
        assert main(["evaluate", source, *options]) == 0
        out = capsys.readouterr().out
        results.append(json.loads(out[out.index("{\n") :]))
    assert results[0] == pytest.approx(results[1]) and results[0]["total"] == 12
    measured = ["benchmark", folder, str(tmp_path / "scored"), "--lengths", "8", "--batches", "1", "--repeats", "2"]
    assert main([*measured, *options]) == 0
    assert "NDCG@10" in capsys.readouterr().out
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    assert main(["demo", "--student", folder, "--port", "0"]) == 2
    assert "no question-answering head" in capsys.readouterr().err
