"""Exact match and F1 of SQuAD v1.1 and v2.0."""

import collections
import json
import logging
import re
import string
from collections.abc import Callable
from pathlib import Path

from itrd_nlp.utils.errors import UserError, one_line, reading

logger = logging.getLogger(__name__)
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_predictions(file: str | Path) -> dict[str, str]:
    """Read predictions in SQuAD's format, a JSON object of question id to answer text; raises :class:`UserError`."""
    expected = "a JSON object of question id to answer text"
    with reading(file, expected):
        text = Path(file).read_text(encoding="utf-8-sig")
    try:
        predictions = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"file '{file}' is not valid json: {one_line(error)}") from error
    if not isinstance(predictions, dict) or not all(isinstance(text, str) for text in predictions.values()):
        raise UserError(f"file '{file}' holds no predictions: expected {expected}")
    return predictions


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and surplus whitespace."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both texts are equal once normalised, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words of both texts, counted with multiplicity, 0 to 1.

    A text without words equals only another one without words (SQuAD v2.0).
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    return 2.0 * shared / (len(predicted) + len(expected))


def squad_scores(
    predictions: dict[str, str],
    references: dict[str, list[str]],
    no_answer_probabilities: dict[str, float] | None = None,
) -> dict[str, float]:
    """Scores of SQuAD, v2.0 if a question has no gold answer, else v1.1.

    Args:
        predictions: answer of each question id; the empty string says "no answer". A question without a prediction
            scores 0 (as the v1.1 script has it; the v2.0 script leaves it out of the mean).
        references: gold answers of each question id; an empty list (or one of blank texts) means "has no answer".
        no_answer_probabilities: per id, higher for "no answer", any monotone scale. They set only the best_* scores;
            exact_match and f1 judge the texts as they are.

    Returns:
        exact_match and f1 in percent, total. For v2.0 also HasAns_* and NoAns_* of the three (those of a kind that
        occurs) and, with probabilities, the best scores any threshold reaches: best_exact_match, best_f1 and
        their thresholds best_exact_match_threshold, best_f1_threshold.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("no references: SQuAD scores need at least one question")
    missing = references.keys() - predictions.keys()
    if missing:
        logger.warning("%d of %d questions have no prediction and score 0", len(missing), len(references))
    answerable = {key: _is_answerable(texts) for key, texts in references.items()}
    each = question_scores(predictions, references)
    kinds = {"": list(references)}
    if not all(answerable.values()):
        kinds["HasAns_"] = [key for key in references if answerable[key]]
        kinds["NoAns_"] = [key for key in references if not answerable[key]]
    scores: dict[str, float] = {}
    for prefix, keys in kinds.items():
        if keys:
            means = {name: 100.0 * sum(values[key] for key in keys) / len(keys) for name, values in each.items()}
            scores |= {f"{prefix}{name}": value for name, value in means.items()} | {f"{prefix}total": len(keys)}
    if len(kinds) > 1 and no_answer_probabilities is not None:
        for name, values in each.items():
            best, threshold = _best_threshold(predictions, values, no_answer_probabilities, answerable)
            scores |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return scores


def question_scores(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """``exact_match`` and ``f1`` of each question id, 0 to 1; arguments as of :func:`squad_scores`."""
    v1 = all(_is_answerable(texts) for texts in references.values())
    golds = references if v1 else {key: list(filter(normalize_answer, texts)) for key, texts in references.items()}
    exact = {key: _best(exact_match, predictions.get(key), golds[key]) for key in references}
    overlap = {key: _best(f1, predictions.get(key), golds[key]) for key in references}
    if v1:  # the v1.1 script gives no F1 to a prediction without words, even if it is right
        overlap = {key: value if normalize_answer(predictions.get(key, "")) else 0.0 for key, value in overlap.items()}
    return {"exact_match": exact, "f1": overlap}


def _is_answerable(texts: list[str]) -> bool:
    """Whether one of the gold answers has a text: converters write ``[""]`` where there is none."""
    return any(text.strip() for text in texts)


def _best(score: Callable[[str, str], float], prediction: str | None, golds: list[str]) -> float:
    if prediction is None:
        return 0.0
    return max(score(prediction, gold) for gold in golds or [""])


def _best_threshold(
    predictions: dict[str, str],
    scores: dict[str, float],
    probabilities: dict[str, float],
    answerable: dict[str, bool],
) -> tuple[float, float]:
    """The best mean score, in percent, of keeping an answer only up to a no-answer probability, and that threshold.

    Where it is best never to answer, that is 0, as in the official script, which takes probabilities; on a scale that
    goes below 0, such as logits, 0 would keep answers, and the threshold is below all of them.
    """
    current = best = float(sum(not kind for kind in answerable.values()))
    least = min(probabilities.values(), default=0.0)
    threshold = 0.0 if least >= 0 else least - 1.0
    for key in sorted((key for key in probabilities if key in scores), key=probabilities.__getitem__):
        if answerable[key]:
            current += scores[key]
        elif predictions.get(key) != "":
            current -= 1.0
        if current > best:
            best, threshold = current, probabilities[key]
    return 100.0 * best / len(scores), threshold
