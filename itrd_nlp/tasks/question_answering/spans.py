"""From start and end logits to answers: the best spans of every question, joined over the windows of its context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from itrd_nlp.tasks.metrics import check_finite
from itrd_nlp.utils.errors import UserError

CHUNK = 1024  # windows whose (n_best, n_best) pairs are scored at once


class Answer(NamedTuple):
    """One predicted answer.

    Attributes:
        text: the characters `context[start:end]`; empty for "no answer".
        score: probability among the n best spans (and "no answer", where that is allowed), 0 to 1.
        start: offset of the first character in the context.
        end: offset behind the last character.
        no_answer_score: score of "no answer" minus that of the best span, in logits; above 0 "no answer" is likelier.
    """

    text: str
    score: float
    start: int
    end: int
    no_answer_score: float


@dataclass(frozen=True)
class Windows:
    """Where the tokens of n windows lie in their contexts.

    Attributes:
        example: (n,) index of the question each window belongs to.
        null_position: (n,) token that stands for "no answer".
        char_starts: (n, length) first character of each context token, -1 for every other token and the padding.
        char_ends: (n, length) offset behind its last character, -1 likewise.
        lengths: (n,) tokens of each window, without the padding.
    """

    example: np.ndarray
    null_position: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_features(cls, features: Mapping[str, Sequence[Any]]) -> Windows:
        """Pads the columns example_index, null_position, char_starts and char_ends of evaluation features."""
        lengths = np.array([len(row) for row in features["char_starts"]])
        filled = np.arange(lengths.max(initial=1)) < lengths[:, None]

        def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
            table = np.full(filled.shape, -1, dtype=np.int64)
            table[filled] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
            return table

        return cls(
            example=np.asarray(features["example_index"], dtype=np.int64),
            null_position=np.asarray(features["null_position"], dtype=np.int64),
            char_starts=padded(features["char_starts"]),
            char_ends=padded(features["char_ends"]),
            lengths=lengths,
        )


class Spans(NamedTuple):
    """Candidate spans, one per row: question, characters [start, end) and start + end logit."""

    example: np.ndarray
    start: np.ndarray
    end: np.ndarray
    score: np.ndarray


def find_answers(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    windows: Windows,
    contexts: Sequence[str],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float | None = None,
) -> list[Answer]:
    """The best answer to each question (post-processing of Devlin et al. 2019, section 4.2 and 4.3).

    Args:
        start_logits: (n, width) one row per window; what lies beyond a window's tokens is never read.
        end_logits: (n, width).
        windows: the n windows, see `Windows`.
        contexts: one context per question.
        n_best: start and end candidates per window, of all its tokens, and spans that share the probability.
        max_answer_length: in tokens.
        null_threshold: "no answer" wins where its score exceeds the best span's by more than this, in logits;
            None: every question has an answer.

    Returns:
        One `Answer` per context. A question none of whose windows holds a span gets an empty one of score 0.

    Raises:
        UserError: logits of another shape than the windows', or n_best or max_answer_length below 1.
    """
    _check(start_logits, end_logits, windows, n_best, max_answer_length)
    spans = _candidates(start_logits, end_logits, windows, n_best, max_answer_length)
    spans = _best_of_question(_distinct(spans), n_best)
    count = len(contexts)
    at_null = np.arange(len(windows.example)), windows.null_position
    null = np.full(count, np.inf)
    np.minimum.at(null, windows.example, start_logits[at_null].astype(np.float64) + end_logits[at_null])

    found, first = np.unique(spans.example, return_index=True)
    best = np.full(count, -np.inf)
    best[found] = spans.score[first]
    total = np.bincount(spans.example, np.exp(spans.score - best[spans.example]), minlength=count)
    odds = np.exp(np.clip(null - best, None, 500.0))
    if null_threshold is not None:
        total = total + odds
    place = dict(zip(found.tolist(), first.tolist(), strict=True))

    answers = []
    for example, context in enumerate(contexts):
        difference = float(null[example] - best[example])
        if example not in place:
            answers.append(Answer("", 0.0, 0, 0, difference))
        elif null_threshold is not None and difference > null_threshold:
            answers.append(Answer("", float(odds[example] / total[example]), 0, 0, difference))
        else:
            start, end = int(spans.start[place[example]]), int(spans.end[place[example]])
            answers.append(_trimmed(context, start, end, 1.0 / float(total[example]), difference))
    return answers


def _check(
    start_logits: np.ndarray, end_logits: np.ndarray, windows: Windows, n_best: int, max_answer_length: int
) -> None:
    count, length = windows.char_starts.shape
    if start_logits.shape != end_logits.shape or len(start_logits) != count or start_logits.shape[1] < length:
        raise UserError(
            f"start and end logits of shape {start_logits.shape} and {end_logits.shape} do not fit {count} windows of "
            f"{length} tokens: pass the logits of this dataset, in its order"
        )
    if n_best < 1 or max_answer_length < 1:
        raise UserError(f"n_best and max_answer_length must be at least 1, not {n_best} and {max_answer_length}")


def _candidates(
    start_logits: np.ndarray, end_logits: np.ndarray, windows: Windows, n_best: int, max_answer_length: int
) -> Spans:
    """The n best pairs of every window among its n best starts and n best ends.

    As in the official code those are of all tokens of the window, and what is no span of the context is left out only
    then: a start in the question takes a place of a start in the context.
    """
    length = windows.char_starts.shape[1]
    parts = []
    for begin in range(0, len(windows.example), CHUNK):
        rows = slice(begin, begin + CHUNK)
        char_starts, char_ends = windows.char_starts[rows], windows.char_ends[rows]
        tokens = np.arange(length) < windows.lengths[rows, None]
        start_scores = np.where(tokens, check_finite(start_logits[rows, :length]), -np.inf).astype(np.float64)
        end_scores = np.where(tokens, check_finite(end_logits[rows, :length]), -np.inf).astype(np.float64)
        starts, ends = _top(start_scores, n_best), _top(end_scores, n_best)
        first, last = _take(char_starts, starts)[:, :, None], _take(char_ends, ends)[:, None, :]
        between = ends[:, None, :] - starts[:, :, None]
        spans = (first >= 0) & (last > first) & (between >= 0) & (between < max_answer_length)
        scores = _take(start_scores, starts)[:, :, None] + _take(end_scores, ends)[:, None, :]
        scores = np.where(spans, scores, -np.inf).reshape(len(starts), -1)
        pairs = _top(scores, n_best)
        start, end = _take(starts, pairs // ends.shape[1]), _take(ends, pairs % ends.shape[1])
        score = _take(scores, pairs)
        valid = score > -np.inf
        example = np.broadcast_to(windows.example[rows, None], score.shape)
        parts.append((example[valid], _take(char_starts, start)[valid], _take(char_ends, end)[valid], score[valid]))
    return Spans(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest scores of each row, best first; of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _take(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.take_along_axis(table, columns, axis=1)


def _distinct(spans: Spans) -> Spans:
    """Keeps the best score of a span that overlapping windows hold twice."""
    spans = _rows(spans, np.lexsort((-spans.score, spans.end, spans.start, spans.example)))
    new = np.ones(len(spans.score), dtype=bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in (spans.example, spans.start, spans.end)], axis=0)
    return _rows(spans, new)


def _best_of_question(spans: Spans, n_best: int) -> Spans:
    """The n best spans of each question, best first."""
    spans = _rows(spans, np.lexsort((-spans.score, spans.example)))
    _, first, counts = np.unique(spans.example, return_index=True, return_counts=True)
    rank = np.arange(len(spans.score)) - np.repeat(first, counts)
    return _rows(spans, rank < n_best)


def _rows(spans: Spans, chosen: np.ndarray) -> Spans:
    return Spans(*(column[chosen] for column in spans))


def _trimmed(context: str, start: int, end: int, score: float, no_answer_score: float) -> Answer:
    """The answer without the blanks some tokenizers count into a token."""
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    return Answer(text.strip(), score, start, start + len(text.strip()), no_answer_score)
