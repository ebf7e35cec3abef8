"""Post-processing against a plain triple loop."""

import math

import numpy as np
import pytest

from itrd_nlp.tasks.question_answering import spans
from itrd_nlp.tasks.question_answering.spans import Windows, find_answers
from itrd_nlp.utils.errors import UserError

CONTEXTS = ["one two  three four five six", "seven eight nine ten", "eleven 🦊 twelve", ""]


def make_windows(rng, length=9, copies=3):
    """Random windows over the words of CONTEXTS, overlapping, CLS at 0 and question tokens before the context."""
    features = {"example_index": [], "null_position": [], "char_starts": [], "char_ends": []}
    for example, context in enumerate(CONTEXTS):
        words = []
        for word in context.split():
            start = context.index(word)
            words.append((start, start + len(word)))
        for _ in range(copies):
            begin = int(rng.integers(0, max(len(words) - 1, 1)))
            part = words[begin : begin + int(rng.integers(1, length - 3))]
            question = int(rng.integers(1, 3))
            features["example_index"].append(example)
            features["null_position"].append(int(rng.integers(0, question)))
            features["char_starts"].append([-1] * question + [start for start, _ in part] + [-1])
            features["char_ends"].append([-1] * question + [end for _, end in part] + [-1])
    return features


def by_loops(start_logits, end_logits, features, n_best, max_answer_length, null_threshold):
    """The same in plain Python."""
    answers = []
    for example, context in enumerate(CONTEXTS):
        best, null = {}, math.inf
        for row, owner in enumerate(features["example_index"]):
            if owner != example:
                continue
            starts, ends = features["char_starts"][row], features["char_ends"][row]
            cls = features["null_position"][row]
            null = min(null, start_logits[row][cls] + end_logits[row][cls])
            tokens = range(len(starts))
            top_starts = sorted(tokens, key=lambda token, row=row: -start_logits[row][token])[:n_best]
            top_ends = sorted(tokens, key=lambda token, row=row: -end_logits[row][token])[:n_best]
            pairs = []
            for start in top_starts:
                for end in top_ends:
                    inside = starts[start] >= 0 and starts[end] >= 0
                    if inside and start <= end < start + max_answer_length:
                        pairs.append((start_logits[row][start] + end_logits[row][end], starts[start], ends[end]))
            for score, start, end in sorted(pairs, reverse=True)[:n_best]:
                best[start, end] = max(score, best.get((start, end), -math.inf))
        ranked = sorted(best.items(), key=lambda item: -item[1])[:n_best]
        if not ranked:
            answers.append(("", 0.0, 0, 0, math.inf))
            continue
        (start, end), top = ranked[0]
        total = sum(math.exp(score) for _, score in ranked) + (math.exp(null) if null_threshold is not None else 0.0)
        if null_threshold is not None and null - top > null_threshold:
            answers.append(("", math.exp(null) / total, 0, 0, null - top))
        else:
            answers.append((context[start:end], math.exp(top) / total, start, end, null - top))
    return answers


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("n_best", "max_answer_length", "null_threshold"),
    [(20, 30, None), (3, 2, None), (1, 1, None), (4, 3, 0.0), (20, 30, -1.0), (5, 30, math.inf)],
)
def test_equals_a_triple_loop(seed, n_best, max_answer_length, null_threshold, monkeypatch):
    monkeypatch.setattr(spans, "CHUNK", 5)
    rng = np.random.default_rng(seed)
    features = make_windows(rng)
    logits = rng.normal(scale=2.0, size=(2, len(features["example_index"]), 16))
    for row, starts in enumerate(features["char_starts"]):
        logits[:, row, len(starts) :] = 1000.0  # beyond the window: must never be read
    settings = {"n_best": n_best, "max_answer_length": max_answer_length, "null_threshold": null_threshold}
    found = find_answers(*logits, Windows.from_features(features), CONTEXTS, **settings)
    for answer, expected in zip(found, by_loops(*logits, features, **settings), strict=True):
        assert (answer.text, answer.start, answer.end) == (expected[0], expected[2], expected[3])
        assert answer.score == pytest.approx(expected[1], rel=1e-9)
        assert answer.no_answer_score == pytest.approx(expected[4], rel=1e-9)


def single(char_starts, char_ends):
    return Windows(
        np.array([0]), np.array([0]), np.array([char_starts]), np.array([char_ends]), np.array([len(char_ends)])
    )


def test_candidates_are_of_all_tokens_as_in_the_official_code():
    windows = single([-1, -1, -1, 0, 2, -1], [-1, -1, -1, 1, 3, -1])  # [CLS] q [SEP] a b [SEP]
    start, end = np.array([[0.0, 9, 0, 1, 0, 0]]), np.array([[0.0, 9, 0, 0, 1, 0]])
    assert find_answers(start, end, windows, ["a b"], n_best=1)[0] == ("", 0.0, 0, 0, np.inf)
    assert find_answers(start, end, windows, ["a b"], n_best=2)[0].text == "a b"


def test_of_equal_scores_the_first_tokens_are_taken():
    windows = single([-1, *range(0, 80, 2)], [-1, *range(1, 81, 2)])
    flat = np.zeros((1, 41))
    assert find_answers(flat, flat, windows, [" ".join("abcd" * 10)], n_best=3)[0][2:4] == (0, 1)


def test_logits_that_are_no_numbers_are_refused():
    windows, broken = single([-1, 0, 4], [-1, 3, 7]), np.array([[0.0, np.nan, 0.0]])
    with pytest.raises(UserError, match="NaN for 1 of 1"):
        find_answers(broken, broken, windows, ["one two"])


def test_offsets_cut_the_text_from_the_context():
    windows = single([-1, 0, 3, 9], [-1, 3, 9, 14])  # tokens that count the blank before them
    logits = np.array([[0.0, 0.0, 9.0, 0.0]])
    answer = find_answers(logits, logits, windows, ["one two  three"])[0]
    assert (answer.text, answer.start, answer.end) == ("two", 4, 7)


@pytest.mark.parametrize("word", ["cafe\u0301", "\u0928\u092e\u0938\u094d\u0924\u0947"])
def test_marks_that_a_tokenizer_strips_are_part_of_the_answer(word):
    """Offsets of BERT's tokens end before accents of their own code points, as of Hindi's vowels."""
    windows = single([-1, 0, len(word) + 1], [-1, len(word) - 1, len(word) + 3])
    logits = np.array([[0.0, 9.0, 0.0]])
    answer = find_answers(logits, logits, windows, [f"{word} is"])[0]
    assert (answer.text, answer.start, answer.end) == (word, 0, len(word))


def test_large_logits_stay_finite():
    windows = single([-1, 0, 4], [-1, 3, 7])
    spread = np.array([[4000.0, 0.0, 4000.0]], dtype=np.float32)
    kept = find_answers(spread, spread, windows, ["one two"])[0]
    assert (kept.text, kept.score) == ("two", 1.0)
    none = find_answers(spread, np.array([[4000.0, 0.0, 0.0]]), windows, ["one two"], null_threshold=0.0)[0]
    assert (none.text, none.score) == ("", 1.0)


def test_tokens_without_characters_are_no_answer():
    windows = single([-1, 4, 4], [-1, 4, 7])
    logits = np.array([[0.0, 9.0, 0.0]])
    assert find_answers(logits, logits, windows, ["one two"], max_answer_length=1)[0].text == "two"


@pytest.mark.parametrize("shape", [(2, 3), (1, 2)])
def test_refuses_logits_of_other_windows(shape):
    with pytest.raises(UserError, match="do not fit 1 windows of 3 tokens"):
        find_answers(np.zeros(shape), np.zeros(shape), single([-1, 0, 4], [-1, 3, 7]), ["one two"])


def test_refuses_to_keep_no_candidates():
    with pytest.raises(UserError, match="n_best 0: expected 1 or more"):
        find_answers(np.zeros((1, 3)), np.zeros((1, 3)), single([-1, 0, 4], [-1, 3, 7]), ["one two"], n_best=0)
