"""From start and end logits to answers: the best spans of every question, joined over the windows of its context."""

from __future__ import annotations

import unicodedata
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
    spans, scores = _best_spans(start_logits, end_logits, windows, n_best, max_answer_length)
    count = len(contexts)
    at_null = np.arange(len(windows.example)), windows.null_position
    null = np.full(count, np.inf)
    np.minimum.at(null, windows.example, start_logits[at_null].astype(np.float64) + end_logits[at_null])

    answered, first = np.unique(spans[:, 0], return_index=True)
    best = np.full(count, -np.inf)
    best[answered] = scores[first]
    total = np.bincount(spans[:, 0], np.exp(scores - best[spans[:, 0]]), minlength=count)
    odds = np.exp(np.clip(null - best, None, 500.0))
    if null_threshold is not None:
        total = total + odds
    best_spans = {example: (start, end) for example, start, end in spans[first].tolist()}

    answers = []
    for example, context in enumerate(contexts):
        difference = float(null[example] - best[example])
        if example not in best_spans:
            answers.append(Answer("", 0.0, 0, 0, difference))
        elif null_threshold is not None and difference > null_threshold:
            answers.append(Answer("", float(odds[example] / total[example]), 0, 0, difference))
        else:
            start, end = best_spans[example]
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
    check_counts(n_best, max_answer_length)


def check_counts(n_best: int, max_answer_length: int) -> None:
    """Raise :class:`UserError` where no answer could be chosen."""
    for name, value in (("n_best", n_best), ("max_answer_length", max_answer_length)):
        if value < 1:
            raise UserError(f"{name} {value}: expected 1 or more")


def _best_spans(
    start_logits: np.ndarray, end_logits: np.ndarray, windows: Windows, n_best: int, max_answer_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n best spans of each question, best first: (m, 3) question, first character, end; and (m,) scores.

    They come from the n best pairs of each window, among its n best starts and n best ends. As in the official code
    those are of all tokens, and pairs that are not a span of the context are left out afterwards: a start in the
    question takes the place of a start in the context.
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
        is_span = (first >= 0) & (last > first) & (between >= 0) & (between < max_answer_length)
        scores = _take(start_scores, starts)[:, :, None] + _take(end_scores, ends)[:, None, :]
        scores = np.where(is_span, scores, -np.inf).reshape(len(starts), -1)
        pairs = _top(scores, n_best)
        score = _take(scores, pairs)
        example = np.broadcast_to(windows.example[rows, None], score.shape)
        start = _take(char_starts, _take(starts, pairs // ends.shape[1]))
        end = _take(char_ends, _take(ends, pairs % ends.shape[1]))
        parts.append([column[score > -np.inf] for column in (example, start, end, score)])
    example, start, end, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((end, start, -score, example))
    spans, score = np.stack([example, start, end], axis=1)[order], score[order]
    _, first = np.unique(spans, axis=0, return_index=True)  # overlapping windows hold a span twice: the best counts
    spans, score = spans[np.sort(first)], score[np.sort(first)]
    _, first, counts = np.unique(spans[:, 0], return_index=True, return_counts=True)
    rank = np.arange(len(spans)) - np.repeat(first, counts)
    return spans[rank < n_best], score[rank < n_best]


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest scores of each row, best first; of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _take(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.take_along_axis(table, columns, axis=1)


def is_mark(character: str) -> bool:
    """Whether a character only marks the one before it, such as an accent; some tokenizers strip these."""
    return unicodedata.category(character).startswith("M")


def _trimmed(context: str, start: int, end: int, score: float, no_answer_score: float) -> Answer:
    """The answer without the blanks some tokenizers count into a token, and with the accents that others leave out."""
    while end < len(context) and is_mark(context[end]):
        end += 1
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    return Answer(text.strip(), score, start, start + len(text.strip()), no_answer_score)
