"""The package's numbers against libraries and the official scripts' formulas, on random inputs with corner cases.

Nothing here calls the package to compute what it is compared with. Libraries that are not installed skip their tests.
"""

import collections
import json
import math
import re
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from itrd_nlp.tasks import metrics as scores
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.scores import squad_scores
from itrd_nlp.tasks.tag_schemes import entities

LAST_DIGIT = {"rel": 1e-12, "abs": 1e-10}  # of numbers in percent
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

CLASSES = st.integers(0, 4)
LABELS = st.lists(st.tuples(CLASSES, CLASSES), min_size=1, max_size=30)
# on a grid: ties, and no numbers so close that a correlation of theirs is rounding alone
GRID = st.integers(-9, 9).map(lambda x: x / 4)
PAIRS = st.lists(st.tuples(GRID, GRID), min_size=2, max_size=30)
SETS = st.integers(1, 5).flatmap(
    lambda classes: st.lists(st.tuples(*[st.tuples(st.booleans(), st.booleans())] * classes), min_size=1, max_size=12)
)


@FEW
@given(LABELS)
@example([(0, 0)])
@example([(1, 0), (1, 0)])
@example([(2, 2)] * 3)
@pytest.mark.filterwarnings("ignore")
def test_classes_as_in_scikit_learn(labels):
    metrics = pytest.importorskip("sklearn.metrics")
    found, gold = np.array(labels).T
    counts = scores.confusion(found, gold, 5)
    assert counts.tolist() == metrics.confusion_matrix(gold, found, labels=range(5)).tolist()
    assert scores.macro_f1(counts) == pytest.approx(100 * metrics.f1_score(gold, found, average="macro"), **LAST_DIGIT)
    assert scores.matthews(counts) == pytest.approx(100 * metrics.matthews_corrcoef(gold, found), **LAST_DIGIT)
    found, gold = found % 2, gold % 2
    binary = [[(found & gold).sum(), found.sum(), gold.sum()]]
    assert scores.f1_of_counts(binary) == pytest.approx(
        100 * metrics.f1_score(gold, found, zero_division=0), **LAST_DIGIT
    )


@FEW
@given(SETS)
@example([((False, False),) * 3])
@example([((True, True),) * 3] * 2)
@pytest.mark.filterwarnings("ignore")
def test_several_classes_as_in_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    found, gold = np.moveaxis(np.array(rows), 2, 0)
    counts = np.stack([(found & gold).sum(1), found.sum(1), gold.sum(1)], axis=1)
    if found.shape[1] > 1:  # of one column scikit-learn makes two classes
        for name, value in (("micro", scores.f1_of_counts(counts)), ("macro", scores.multilabel_macro_f1(found, gold))):
            expected = metrics.f1_score(gold, found, average=name, zero_division=0)
            assert value == pytest.approx(100 * expected, **LAST_DIGIT)


@FEW
@given(PAIRS)
@example([(1.0, 1.0), (1.0, 2.0)])
@example([(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.filterwarnings("ignore")
def test_correlations_as_in_scipy(pairs):
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(pairs).T
    for ours, theirs in ((scores.pearson, stats.pearsonr), (scores.spearman, stats.spearmanr)):
        expected = theirs(x, y)[0]
        # scipy has NaN where one side is constant, which no table can rank: 0 here
        assert ours(pairs) == pytest.approx(0.0 if math.isnan(expected) else 100 * expected, **LAST_DIGIT)


@FEW
@given(st.lists(st.lists(GRID, min_size=12, max_size=12), min_size=1, max_size=8))
@example([[0.0] * 12])
def test_top_5_by_definition(logits):
    gold = [i % 12 for i in range(len(logits))]
    hits = [sum((-a, c) < (-row[g], g) for c, a in enumerate(row)) < 5 for row, g in zip(logits, gold, strict=True)]
    assert scores.top_accuracy(np.array(logits), gold, 5) == pytest.approx(100 * sum(hits) / len(hits), **LAST_DIGIT)


TAG = st.sampled_from(["O", "O", "B-A", "I-A", "B-B", "I-B"])
SENTENCES = st.lists(st.lists(st.tuples(TAG, TAG), min_size=1, max_size=10), min_size=1, max_size=6)


def chunks(tags):
    """The (type, first, last word) of the chunks of IOB tags, from conlleval's two questions about neighbours."""
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        ends = before != "O" and (tag[0] in "BO" or tag[2:] != before[2:])
        starts = tag != "O" and (tag[0] == "B" or before == "O" or tag[2:] != before[2:])
        if ends:
            found.add((before[2:], start, i - 1))
        if starts:
            start = i
    return found


def of_sentences(sentences):
    found, gold = [[entities([pair[side] for pair in row]) for row in sentences] for side in (0, 1)]
    return scores.f1_of_counts([[len(f & g), len(f), len(g)] for f, g in zip(found, gold, strict=True)])


@FEW
@given(SENTENCES)
@example([[("O", "O")]])
def test_entities_as_in_conlleval(sentences):
    found, gold = [[chunks([pair[side] for pair in row]) for row in sentences] for side in (0, 1)]
    right, said, there = (
        sum(len(f & g) for f, g in zip(found, gold, strict=True)),
        sum(map(len, found)),
        sum(map(len, gold)),
    )
    precision, recall = right / said if said else 0.0, right / there if there else 0.0
    expected = 200 * precision * recall / (precision + recall) if right else 0.0
    assert of_sentences(sentences) == pytest.approx(expected, **LAST_DIGIT)


@FEW
@given(SENTENCES)
@example([[("O", "O")]])
@pytest.mark.filterwarnings("ignore")
def test_entities_as_in_seqeval(sentences):
    seqeval = pytest.importorskip("seqeval.metrics")
    found, gold = [[[pair[side] for pair in row] for row in sentences] for side in (0, 1)]
    assert of_sentences(sentences) == pytest.approx(100 * seqeval.f1_score(gold, found), **LAST_DIGIT)


# SQuAD: the official scripts' definitions, written anew


def words(text):
    """Lower case, without punctuation and articles, in words."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def overlap(found, gold, empty):
    """F1 of two lists of words; ``empty``: whether two empty ones are equal (v2.0) or score nothing (v1.1)."""
    if empty and (not found or not gold):
        return float(found == gold)
    left, same = collections.Counter(gold), 0
    for word in found:
        if left[word] > 0:
            left[word] -= 1
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def official_v1(predictions, references):
    exact = overlapping = 0.0
    for key, golds in references.items():
        if key in predictions:
            exact += max(float(words(predictions[key]) == words(gold)) for gold in golds)
            overlapping += max(overlap(words(predictions[key]), words(gold), False) for gold in golds)
    return {
        "exact_match": 100 * exact / len(references),
        "f1": 100 * overlapping / len(references),
        "total": len(references),
    }


def official_v2(predictions, references, odds):
    each = {"exact_match": {}, "f1": {}}
    for key, golds in references.items():
        golds = [gold for gold in golds if words(gold)] or [""]
        each["exact_match"][key] = max(float(words(predictions[key]) == words(gold)) for gold in golds)
        each["f1"][key] = max(overlap(words(predictions[key]), words(gold), True) for gold in golds)
    result = {}
    for prefix, keys in (
        ("", list(references)),
        ("HasAns_", [key for key in references if references[key]]),
        ("NoAns_", [key for key in references if not references[key]]),
    ):
        if keys:
            result |= {f"{prefix}{name}": 100 * sum(each[name][key] for key in keys) / len(keys) for name in each}
            result[f"{prefix}total"] = len(keys)
    for name, values in each.items():
        score = best = sum(not golds for golds in references.values())
        threshold = 0.0
        for key in sorted(odds, key=odds.get):
            score += values[key] if references[key] else (-1 if predictions[key] else 0)
            if score > best:
                best, threshold = score, odds[key]
        result |= {f"best_{name}": 100 * best / len(references), f"best_{name}_threshold": threshold}
    return result


PIECES = "the a An king King's 1,066 «naïve» 24–10 U.S.A. ... Ångström 東京 🦊 the.".split()
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(" ".join)
GOLDS = st.lists(TEXT, min_size=1, max_size=3)
QUESTIONS = st.lists(st.tuples(GOLDS, st.one_of(st.none(), st.just(""), TEXT)), min_size=1, max_size=8)
QUESTIONS_2 = st.lists(
    st.tuples(st.one_of(st.just([]), GOLDS), st.one_of(st.just(""), TEXT), st.integers(0, 8)), min_size=1, max_size=8
)


@FEW
@given(QUESTIONS)
@example([(["a"], "a")])
@example([(["the"], "...")])
@example([(["king"], None)])
def test_squad_v1_as_the_official_script(questions):
    references = {str(i): golds for i, (golds, _) in enumerate(questions)}
    predictions = {str(i): text for i, (_, text) in enumerate(questions) if text is not None}
    assert squad_scores(predictions, references) == pytest.approx(official_v1(predictions, references), **LAST_DIGIT)


@settings(FEW, max_examples=200)
@given(QUESTIONS_2)
@example([([], "king", 1), (["king"], "queen", 2)])  # it is best never to answer
@example([([], "", 0)])
@example([([], "the", 0)])
@example([(["a"], "", 0), ([], "...", 0)])
def test_squad_v2_as_the_official_script(questions):
    references = {str(i): golds for i, (golds, _, _) in enumerate(questions)}
    predictions = {str(i): text for i, (_, text, _) in enumerate(questions)}
    odds = {str(i): eighths / 8 for i, (_, _, eighths) in enumerate(questions)}
    expected = official_v2(predictions, references, odds)
    if all(references.values()):  # the v1.1 script is the one for such data
        expected = official_v1(predictions, references)
    assert squad_scores(predictions, references, odds) == pytest.approx(expected, **LAST_DIGIT)


@pytest.mark.parametrize("version", ["squad", "squad_v2"])
def test_published_predictions(shared, version):
    folder = shared / "data" / version
    predictions = json.loads((folder / "bert_predictions_validation.json").read_text())
    content = json.loads((folder / "validation.json").read_text())
    references = {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    data = load_squad(validation_file=str(folder / "validation.json")).validation
    found = squad_scores(predictions, {row["id"]: row["answers"]["text"] for row in data})
    if version == "squad":
        assert found == pytest.approx(official_v1(predictions, references), **LAST_DIGIT)
        assert (round(found["exact_match"], 3), round(found["f1"], 3)) == (86.938, 92.087)
        return
    expected = official_v2(predictions, references, {})
    assert found == pytest.approx({k: v for k, v in expected.items() if not k.startswith("best")}, **LAST_DIGIT)
    assert (round(found["exact_match"], 3), round(found["f1"], 3)) == (79.741, 81.793)
    assert (round(found["HasAns_exact_match"], 3), round(found["HasAns_f1"], 3)) == (73.211, 77.215)
    assert round(found["NoAns_f1"], 3) == 86.606
