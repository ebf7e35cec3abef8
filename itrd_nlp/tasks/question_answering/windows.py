"""Questions and contexts as windows of tokens: what the models of extractive question answering read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from itrd_nlp.tasks.question_answering.spans import is_mark
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import PAD_MULTIPLE
from itrd_nlp.utils.tokenizers import check_tokenizer, input_columns, null_position

VERSION = 3  # of what `make_features` makes, which is cached: raise it with each change
QUESTION_TOKENS = 64  # longer questions are cut, as in BERT's recipe; at most a quarter of the window
LABEL_COLUMNS = ("start_positions", "end_positions")
WINDOW_COLUMNS = ("example_index", "null_position", "char_starts", "char_ends")


class SquadCollator:
    """Pads features to their longest, a multiple of 8, without the columns that no model takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_MULTIPLE)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        unused = {"length", *WINDOW_COLUMNS}
        return dict(self.pad([{name: row[name] for name in row if name not in unused} for row in features]))


def window_lengths(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None, doc_stride: int | None, longest: int = 384
) -> tuple[int, int]:
    """Check the lengths of windows; by default ``longest`` or what the tokenizer takes, and a third of it.

    Raises:
        UserError: a slow tokenizer, padding on the left or none, or lengths that do not fit.
    """
    check_tokenizer(tokenizer)
    max_length = min(longest, tokenizer.model_max_length) if max_length is None else max_length
    doc_stride = max_length // 3 if doc_stride is None else doc_stride
    if max_length > tokenizer.model_max_length:
        raise UserError(f"max_length {max_length} exceeds the model's {tokenizer.model_max_length} tokens: lower it")
    room = max_length - question_tokens(max_length) - tokenizer.num_special_tokens_to_add(pair=True)
    if not 0 <= doc_stride < room:
        raise UserError(
            f"doc_stride {doc_stride} does not fit max_length {max_length}: the question leaves {room} tokens to the "
            f"context, so choose a doc_stride from 0 to {room - 1} or a larger max_length"
        )
    return max_length, doc_stride


def make_features(
    examples: Mapping[str, Sequence[Any]],
    indices: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
    evaluation: bool,
) -> dict[str, list[Any]]:
    """Cut each question and context into windows of tokens.

    Args:
        examples: columns question, context, answers of n questions.
        indices: (n,) of the questions in the dataset.
        tokenizer: see `check_tokenizer`.
        max_length: tokens of a window.
        doc_stride: tokens by which windows overlap.
        evaluation: add what `Windows` needs.

    Returns:
        Columns of the windows: what the tokenizer makes (input_ids, attention_mask, ...), special_tokens_mask, length,
        start_positions and end_positions of the first answer, both the no-answer position (CLS, else 0) where the
        window does not hold it; for evaluation also example_index, null_position, char_starts and char_ends.
    """
    numbers = list(indices)
    tokens = tokenizer(
        cut_questions(tokenizer, list(examples["question"]), question_tokens(max_length)),
        list(examples["context"]),
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    names = input_columns(tokens, tokenizer)
    windows = []
    for row, example in enumerate(tokens["overflow_to_sample_mapping"]):
        ids = tokens["input_ids"][row]
        context = [part == 1 for part in tokens.sequence_ids(row)]
        if not evaluation and not any(context):
            continue
        null = null_position(ids, tokenizer)
        offsets = np.where(np.array(context)[:, None], np.array(tokens["offset_mapping"][row]), -1)
        window = {name: tokens[name][row] for name in names} | {"length": len(ids)}
        window |= zip(LABEL_COLUMNS, label(examples["answers"][example], offsets, null), strict=True)
        if evaluation:
            window |= zip(WINDOW_COLUMNS, (numbers[example], null, *offsets.T), strict=True)
        windows.append(window)
    columns = (*names, "length", *LABEL_COLUMNS, *(WINDOW_COLUMNS if evaluation else ()))
    return {name: [window[name] for window in windows] for name in columns}


def check_threshold(null_threshold: float) -> None:
    """Raise :class:`UserError` where no number of logits is above it, nor below."""
    if math.isnan(null_threshold):
        raise UserError("null_threshold is nan: expected a number of logits")


def question_tokens(max_length: int) -> int:
    """Tokens of a question beyond which it is cut, for windows of ``max_length`` tokens."""
    return min(QUESTION_TOKENS, max_length // 4)


def cut_questions(tokenizer: PreTrainedTokenizerBase, questions: list[str], limit: int) -> list[str]:
    """The questions without outer blanks, of at most `limit` tokens; no character is cut in two."""
    questions = [question.strip() for question in questions]
    # verbose warns of questions longer than the model takes, which are cut here
    tokens = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        question[: spans[limit][0]].rstrip() if len(spans) > limit else question
        for question, spans in zip(questions, tokens["offset_mapping"], strict=True)
    ]


def without_marks(text: str) -> str:
    """A text without the combining marks at its end, which some tokenizers strip: no token ends after them."""
    while text and is_mark(text[-1]):
        text = text[:-1]
    return text


def label(answers: Mapping[str, Any], offsets: np.ndarray, null: int) -> tuple[int, int]:
    """First and last token of the first answer, or the no-answer position ``null`` twice.

    Args:
        answers: texts and offsets of a question.
        offsets: (tokens, 2) characters of the context's tokens, -1 elsewhere.
    """
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(answers["text"]) or answers["answer_start"][0] < 0 or not len(inside):
        return null, null
    text, begin = answers["text"][0], answers["answer_start"][0]
    begin, end = begin + len(text) - len(text.lstrip()), begin + len(without_marks(text.rstrip()))
    starts, ends = offsets[inside].T
    first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(starts, end, side="left") - 1
    if starts[0] > begin or ends[-1] < end or first > last:
        return null, null
    return int(inside[first]), int(inside[last])
