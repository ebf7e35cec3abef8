"""EM and F1 of SQuAD: hand values, the definitions of the official scripts, and the `evaluate` wrapping."""

import logging
import random
from pathlib import Path

import evaluate
import pytest

from itrd_nlp.tasks.question_answering import metric as squad_metric
from itrd_nlp.tasks.question_answering.metric import SquadMetric
from itrd_nlp.tasks.question_answering.scores import exact_match, f1, normalize_answer, squad_scores

PREDICTIONS = [{"id": "a", "prediction_text": "The king"}, {"id": "b", "prediction_text": "1066"}]
REFERENCES = [
    {"id": "a", "answers": {"text": ["king", "a king of it"], "answer_start": [4, 2]}},
    {"id": "b", "answers": {"text": [], "answer_start": []}},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, and\ta dog!", "cat and dog"),
        ("Theatre an", "theatre"),
        ("U.S.A.", "usa"),
        ("a-the", "athe"),
        ("24–10", "24–10"),
        ("A", ""),
        ("the\nAnswer", "answer"),
    ],
)
def test_normalises_like_the_official_script(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "overlap"),
    [
        ("the Broncos", "Broncos!", 1.0, 1.0),
        ("Denver Broncos", "Broncos", 0.0, 2 / 3),  # precision 1/2, recall 1
        ("red red blue", "red green", 0.0, 2 / 5),  # "red" counts once: precision 1/3, recall 1/2
        ("left", "right", 0.0, 0.0),
        ("", "right", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("the", "", 1.0, 1.0),
    ],
)
def test_scores_by_hand(prediction, gold, exact, overlap):
    assert exact_match(prediction, gold) == exact
    assert f1(prediction, gold) == pytest.approx(overlap)


def test_takes_the_best_gold_and_counts_a_missing_prediction_as_wrong(caplog):
    golds = {"1": ["Denver Broncos", "Broncos"], "2": ["red"]}
    with caplog.at_level(logging.WARNING):
        scores = squad_scores({"1": "broncos", "unasked": "red"}, golds)
    assert scores == {"exact_match": 50.0, "f1": 50.0, "total": 2}
    assert "1 of 2 questions have no prediction" in caplog.text


def test_v2_splits_by_answerability():
    golds = {"has": ["red car", "the"], "has too": ["blue"], "none": [], "none too": [" "]}
    scores = squad_scores({"has": "red", "has too": "", "none": "", "none too": "red"}, golds)
    assert scores == {
        "exact_match": 25.0,
        "f1": pytest.approx(100 * (2 / 3 + 0 + 1 + 0) / 4),
        "total": 4,
        "HasAns_exact_match": 0.0,
        "HasAns_f1": pytest.approx(100 / 3),
        "HasAns_total": 2,
        "NoAns_exact_match": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_best_threshold_equals_trying_every_threshold():
    rng = random.Random(0)
    for _ in range(20):
        keys = [str(index) for index in range(12)]
        golds = {key: ["red"] if rng.random() < 0.5 else [] for key in keys} | {"none": []}
        predictions = {key: rng.choice(["red", "blue", "red car"]) for key in golds}
        odds = {key: rng.gauss(0, 1) for key in golds}
        scores = squad_scores(predictions, golds, odds)
        for name in ("exact_match", "f1"):

            def at(threshold, name=name, predictions=predictions, golds=golds, odds=odds):
                kept = {key: text if odds[key] <= threshold else "" for key, text in predictions.items()}
                return squad_scores(kept, golds)[name]

            tried = [at(threshold) for threshold in [-99.0, *odds.values()]]
            assert scores[f"best_{name}"] == pytest.approx(max(tried))
            assert at(scores[f"best_{name}_threshold"]) == pytest.approx(max(tried))


def test_refuses_empty_references():
    with pytest.raises(ValueError, match="at least one question"):
        squad_scores({}, {})


@pytest.mark.parametrize("in_memory", [True, False])
def test_metric_class(in_memory, tmp_path):
    scores = SquadMetric(keep_in_memory=in_memory, cache_dir=str(tmp_path)).compute(
        predictions=PREDICTIONS, references=REFERENCES
    )
    assert scores == squad_scores({"a": "The king", "b": "1066"}, {"a": ["king", "a king of it"], "b": []})
    assert scores["HasAns_exact_match"] == 100.0
    assert scores["NoAns_exact_match"] == 0.0


def test_loads_by_path_with_probabilities(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path))
    script = str(Path(squad_metric.__file__))
    graded = [row | {"no_answer_probability": p} for row, p in zip(PREDICTIONS, (0.25, 0.75), strict=True)]
    scores = evaluate.load(script, "squad_v2", cache_dir=str(tmp_path)).compute(
        predictions=graded, references=REFERENCES
    )
    assert scores["exact_match"] == 50.0
    assert (scores["best_exact_match"], scores["best_exact_match_threshold"]) == (100.0, 0.25)
    plain = evaluate.load(script, cache_dir=str(tmp_path)).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert plain["f1"] == 50.0


def test_refuses_an_unknown_configuration():
    with pytest.raises(ValueError, match="unknown configuration 'squad_v3'"):
        SquadMetric("squad_v3")
