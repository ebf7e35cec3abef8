"""Windows of questions and contexts as the tokens of two tokenizers: the teacher's and the student's."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from itrd_nlp.distillation.alignment import Span, text_spans
from itrd_nlp.distillation.paired import paired_columns
from itrd_nlp.tasks.question_answering.windows import LABEL_COLUMNS, cut_questions, label, question_tokens
from itrd_nlp.utils.tokenizers import input_columns, null_position

VERSION = 1  # of what `make_paired_features` makes, which is cached: raise it with each change


logger = logging.getLogger(__name__)

SHORTEST = 24  # tokens of the teacher's window
OUTPUTS = {"return_offsets_mapping": True, "return_special_tokens_mask": True}


class Window(NamedTuple):
    """A part of a context, and its tokens."""

    example: int
    begin: int  # characters of the context
    end: int
    teacher: dict[str, Any]  # what the tokenizer returns
    spans: list[Span]
    student: dict[str, Any] = {}  # noqa: RUF012
    student_spans: list[Span] = []  # noqa: RUF012
    context: np.ndarray = np.empty((0, 2), int)  # (tokens, 2) characters of the student's context tokens, -1 elsewhere


def make_paired_features(
    examples: Mapping[str, Sequence[Any]],
    indices: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
    limit: int,
) -> dict[str, list[Any]]:
    """Cut each question and context into windows of the teacher's tokens, and tokenise the same text for the student.

    The teacher's windows are those of :func:`~itrd_nlp.tasks.question_answering.windows.make_features`, whatever the
    student, so that the teacher's outputs serve every student; only where a student's window would be longer than
    ``limit``, the context is cut into shorter ones.

    Args:
        examples: columns question, context, answers of n questions.
        indices: of the questions, for messages.
        max_length: of the teacher's windows, in tokens.
        doc_stride: tokens by which they overlap.
        limit: tokens that the student takes.

    Returns:
        Columns of the windows: the student's tokens and labels, its spans, and the teacher's tokens and spans.
    """
    questions = cut_questions(teacher_tokenizer, list(examples["question"]), question_tokens(max_length))
    contexts = list(examples["context"])
    columns: dict[str, list[Any]] = defaultdict(list)
    waiting = {max_length: list(range(len(questions)))}  # tokens of a window -> examples to cut so
    while waiting:
        length, numbers = waiting.popitem()
        windows = _teacher_windows(questions, contexts, numbers, teacher_tokenizer, length, doc_stride)
        windows = _add_student(windows, questions, contexts, tokenizer)
        longest: dict[int, int] = {}
        for window in windows:
            longest[window.example] = max(len(window.student["input_ids"]), longest.get(window.example, 0))
        for example, count in longest.items():
            if count > limit and length == SHORTEST:
                logger.warning(
                    f"[data] question {list(indices)[example]} is left out: {length} of the teacher's tokens are "
                    f"{count} of the student's, which takes {limit}"
                )
            elif count > limit:
                waiting.setdefault(max(SHORTEST, min(length - 1, length * limit // count)), []).append(example)
        for window in windows:
            if longest[window.example] <= limit:
                _append(columns, window, tokenizer, teacher_tokenizer, examples["answers"][window.example])
    return dict(columns)


def _teacher_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    numbers: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
) -> list[Window]:
    """The windows of some examples, with the teacher's tokens."""
    room = max_length - question_tokens(max_length) - tokenizer.num_special_tokens_to_add(pair=True)
    options = {"truncation": "only_second", "max_length": max_length, "stride": min(doc_stride, room // 2)}
    texts = [[questions[i] for i in numbers], [contexts[i] for i in numbers]]
    tokens = tokenizer(*texts, return_overflowing_tokens=True, **options, **OUTPUTS)
    windows = []
    for row, number in enumerate(tokens["overflow_to_sample_mapping"]):
        example, parts = numbers[number], tokens.sequence_ids(row)
        offsets = tokens["offset_mapping"][row]
        inside = [span for span, part in zip(offsets, parts, strict=True) if part == 1]
        if inside:
            spans = text_spans(offsets, parts, [0, len(questions[example]) + 1])
            begin, end = min(span[0] for span in inside), max(span[1] for span in inside)
            windows.append(Window(example, begin, end, {n: tokens[n][row] for n in tokens}, spans))
    return windows


def _add_student(
    windows: Sequence[Window], questions: Sequence[str], contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[Window]:
    """The windows with the student's tokens of the same text; spans count from the begin of the complete context."""
    if not windows:
        return []
    texts = [[questions[w.example] for w in windows], [contexts[w.example][w.begin : w.end] for w in windows]]
    tokens = tokenizer(*texts, verbose=False, **OUTPUTS)
    paired = []
    for row, window in enumerate(windows):
        parts = tokens.sequence_ids(row)
        starts = [0, len(texts[0][row]) + 1 + window.begin]
        spans = text_spans(tokens["offset_mapping"][row], parts, starts)
        offsets = np.array(tokens["offset_mapping"][row]) + window.begin
        context = np.where(np.array([part == 1 for part in parts])[:, None], offsets, -1)
        student = {name: tokens[name][row] for name in tokens}
        paired.append(window._replace(student=student, student_spans=spans, context=context))
    return paired


def _append(
    columns: dict[str, list[Any]],
    window: Window,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    answers: Mapping[str, Any],
) -> None:
    """Add a window's columns: the student's tokens and labels, the teacher's tokens, and their alignment."""
    row = {name: window.student[name] for name in input_columns(window.student, tokenizer)}
    ids = row["input_ids"]
    null = null_position(ids, tokenizer)
    row |= {"length": len(ids), **dict(zip(LABEL_COLUMNS, label(answers, window.context, null), strict=True))}
    for name, value in row.items():
        columns[name].append(value)
    teachers = {name: [value] for name, value in window.teacher.items()}
    paired = paired_columns(teachers, teacher_tokenizer, [window.spans], [window.student_spans])
    for name, values in paired.items():
        columns[name] += values
