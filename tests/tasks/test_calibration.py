"""Temperatures against scipy; ECE, Brier score and coverage against plain loops and scikit-learn; no leakage."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss
from transformers import BertForSequenceClassification, EvalPrediction

import tiny
from itrd_nlp.losses.base import GROUP
from itrd_nlp.tasks import calibration
from itrd_nlp.tasks.calibration import calibrate, fit_temperature, probabilities, reliability
from itrd_nlp.tasks.reranking.task import RerankingTask
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask


def draw(n, classes, sharpness, seed=0):
    """Logits that are too sharp by a factor, and labels drawn by the probabilities of the right ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n if classes == 1 else (n, classes)) * 2
    shares = probabilities(logits)
    if classes == 1:
        return sharpness * logits, (rng.random(n) < shares).astype(int)
    return sharpness * logits, (rng.random((n, 1)) > shares.cumsum(1)).sum(1)


def cross_entropy(temperature, logits, labels):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        values = [0.0, row] if np.ndim(row) == 0 else row
        total += math.log(sum(math.exp((z - values[int(label)]) / temperature) for z in values))
    return total


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0])
def test_the_temperature_is_the_one_that_scipy_finds(classes, sharpness):
    logits, labels = draw(200, classes, sharpness)
    found = minimize_scalar(cross_entropy, bounds=(0.05, 20), args=(logits, labels), options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(found.x, rel=1e-5)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_known_temperature_comes_back_and_the_error_falls(classes):
    result = calibrate(*draw(20_000, classes, 2.5))
    assert result["temperature"] == pytest.approx(2.5, rel=0.05) and result["groups"] == 20_000
    assert result["after"]["ece"] < 1.5 < 5 < result["before"]["ece"]
    assert result["after"]["brier"] < result["before"]["brier"]
    assert result["after"]["accuracy@100"] == result["before"]["accuracy@100"]


def test_a_temperature_that_nothing_tells_is_1():
    sure, gold = np.eye(3)[[0, 1, 2, 0]] * 5, np.array([0, 1, 2, 0])
    assert fit_temperature(sure, gold) == 1  # the sharper the better, without end: the examples do not tell
    assert fit_temperature(sure, (gold + 1) % 3) == pytest.approx(100, rel=1e-3)  # logits that mislead
    assert fit_temperature(np.zeros((4, 3)), gold) == 1
    assert 0.01 < fit_temperature(sure, np.array([0, 1, 2, 1])) < 100
    assert calibrate(sure[:1], gold[:1]) is None
    result = calibrate(np.array([[0.0, -np.inf], [-np.inf, 0.0], [0.0, -np.inf]]), np.array([0, 1, 1]))
    assert np.isfinite([*result["after"].values(), result["temperature"]]).all()


def by_hand(shares, labels):
    """ECE, Brier score and accuracy at coverage in plain loops."""
    rows = []
    for share, label in zip(shares.tolist(), labels.tolist(), strict=True):
        if isinstance(share, float):
            rows.append((share, label, (share - label) ** 2, max(share, 1 - share), (share > 0.5) == (label == 1)))
        else:
            best = max(range(len(share)), key=lambda k: share[k])
            squares = sum((value - (k == label)) ** 2 for k, value in enumerate(share))
            rows.append((share[best], float(best == label), squares, share[best], best == label))
    ece = 0.0
    for m in range(15):
        inside = [row for row in rows if m / 15 < row[0] <= (m + 1) / 15 or (m == 0 and row[0] == 0)]
        if inside:
            accuracy = sum(row[1] for row in inside) / len(inside)
            ece += len(inside) / len(rows) * abs(accuracy - sum(row[0] for row in inside) / len(inside))
    scores = {"ece": 100 * ece, "brier": sum(row[2] for row in rows) / len(rows)}
    ranked = sorted(rows, key=lambda row: -row[3])
    for c in (100, 90, 80, 50):
        first = ranked[: math.ceil(len(rows) * c / 100)]
        scores[f"accuracy@{c}"] = 100 * sum(row[4] for row in first) / len(first)
    return scores


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("n", [1, 13, 400])
def test_reliability_is_what_plain_loops_say(classes, n):
    logits, labels = draw(n, classes, 1.7, seed=n)
    shares = probabilities(logits)
    assert reliability(shares, labels) == pytest.approx(by_hand(shares, labels))
    if classes == 1:
        assert reliability(shares, labels)["brier"] == pytest.approx(brier_score_loss(labels, shares))


def test_the_upper_edge_belongs_to_a_bin():
    shares = np.array([0.2, 0.2000001, 1.0, 0.0])  # 0.2 = 3 / 15
    labels = np.array([0, 1, 1, 0])
    assert reliability(shares, labels)["ece"] == pytest.approx(100 * (0.2 + 0.7999999) / 4)


def test_no_example_is_rated_with_a_temperature_that_it_helped_to_fit(monkeypatch):
    """Groups stay together; each half is rated with the temperature of the other, and the last is fitted on all."""
    logits, labels = draw(60, 3, 2.0)
    groups = np.repeat(np.arange(20), 3)
    fitted, rated = [], []
    monkeypatch.setattr(calibration, "fit_temperature", lambda z, y: fitted.append(z) or float(len(fitted)))
    whole = probabilities
    monkeypatch.setattr(calibration, "probabilities", lambda z, t=1.0: rated.append((z, t)) or whole(z, t))
    result = calibrate(logits, labels, groups)
    members = [{groups[np.flatnonzero((logits == row).all(1))[0]] for row in z} for z in fitted]
    assert not members[0] & members[1] and members[0] | members[1] == members[2] == {*range(20)}
    assert len(members[0]) == len(members[1]) == 10 and [len(z) for z in fitted] == [30, 30, 60]
    (first, t1), (second, t2), _ = rated
    assert (t1, t2) == (1.0, 2.0) and np.array_equal(first, fitted[1]) and np.array_equal(second, fitted[0])
    assert result["temperature"] == 3.0


def test_tasks_say_what_their_probabilities_are(tokenizer):
    texts = [["the king", "a city", "the house", "who is it"]]
    rows = Rows("", texts, ["no", "yes", "yes", "no"])
    task = ClassificationTask(tokenizer, rows, rows)
    logits = np.array([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0], [0.5, 0.0]])
    prediction = EvalPrediction((logits, "hidden states"), np.array([0, 1, 1, 0]))
    assert task.has_probabilities and task.calibration(prediction) == calibrate(logits, np.array([0, 1, 1, 0]))

    task = MultilabelTask(tokenizer, *[Rows("", texts, [["a"], ["b"], [], ["a", "b"]])] * 2)
    gold = np.array([[1, 0], [0, 1], [0, 0], [1, 1]])
    result = task.calibration(EvalPrediction(logits, gold))
    assert result == calibrate(logits.ravel(), gold.ravel(), np.arange(8) // 2) and result["groups"] == 4

    task = RegressionTask(tokenizer, *[Rows("", texts, [0.1, 0.2, 0.3, 0.4])] * 2)
    assert not task.has_probabilities and task.calibration(EvalPrediction(logits[:, :1], gold)) is None


@pytest.mark.parametrize("graded", [False, True])
def test_the_documents_of_a_query_stay_together(tokenizer, graded):
    queries = [f"who is {i}" for i in range(6) for _ in range(3)]
    labels = [2 * (1 + i % 3 == 2) if graded else int(i % 3 == 1) for i in range(18)]
    rows = Rows("", [queries, ["the king", "the city", "the house"] * 6], labels)
    task = RerankingTask(tokenizer, None, rows)
    gold = np.array(task.eval_dataset["labels"][:])
    scores = np.random.default_rng(0).normal(size=(18, 1))
    result = task.calibration(EvalPrediction(scores, gold))
    if graded:  # 2 is no probability
        assert not task.has_probabilities and result is None
    else:
        groups = np.array(task.eval_dataset[GROUP][:])
        assert task.has_probabilities and result == calibrate(scores[:, 0], gold.ravel(), groups)
        assert result["groups"] == 6


def test_grades_that_were_learned_by_their_squared_error_are_no_probabilities(tmp_path, tokenizer):
    binary = Rows("", [["who"] * 2, ["the king", "the city"]], [1, 0])
    assert RerankingTask(tokenizer, binary, binary).has_probabilities
    assert not RerankingTask(tokenizer, binary._replace(labels=[3, 0.5]), binary).has_probabilities
    for kind in ("regression", "multi_label_classification"):  # a saved model says how it learned
        config = tiny.config(vocab_size=len(tokenizer), num_labels=1, problem_type=kind)
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        task = RerankingTask(tokenizer, None, binary, teacher=str(tmp_path))
        assert task.has_probabilities == (kind != "regression")
        assert RerankingTask(tokenizer, binary, binary, teacher=str(tmp_path)).has_probabilities
