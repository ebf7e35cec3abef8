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

VERSION = 5  # of what `make_paired_features` makes, which is cached: raise it with each change

logger = logging.getLogger(__name__)

SHORTEST = 24  # tokens of the teacher's window
OUTPUTS = {"return_offsets_mapping": True, "return_special_tokens_mask": True}


class Window(NamedTuple):
    """A part of a context, as the tokens of both tokenizers; spans count from the beginning of the complete context."""

    example: int
    teacher: dict[str, list[Any]]  # what the tokenizer returns
    spans: list[Span]
    student: dict[str, list[Any]]
    student_spans: list[Span]
    context: np.ndarray  # (tokens, 2) characters of the student's context tokens, -1 elsewhere


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
    ``limit``, the context is cut into shorter ones, and the question too where it takes more than its share of them.

    Args:
        examples: columns question, context, answers of n questions.
        indices: of the questions, for messages.
        max_length: of the teacher's windows, in tokens.
        doc_stride: tokens by which they overlap.
        limit: tokens that the student takes.

    Returns:
        Columns of the windows: the student's tokens and labels, its spans, and the teacher's tokens and spans.
    """
    columns: dict[str, list[Any]] = defaultdict(list)
    waiting = {max_length: list(range(len(examples["question"])))}  # tokens of a window -> examples to cut so
    while waiting:
        length, numbers = waiting.popitem()
        originals = [examples["question"][i] for i in numbers]
        questions = cut_questions(teacher_tokenizer, originals, question_tokens(length))
        texts = list(zip(numbers, questions, [examples["context"][i] for i in numbers], strict=True))
        room = length - question_tokens(length) - teacher_tokenizer.num_special_tokens_to_add(pair=True)
        stride = doc_stride if length == max_length else min(doc_stride, room // 2)
        windows = _windows(texts, tokenizer, teacher_tokenizer, length, stride)
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
                answers = examples["answers"][window.example]
                for name, values in _columns(window, tokenizer, teacher_tokenizer, answers).items():
                    columns[name] += values
    return dict(columns)


def _windows(
    examples: Sequence[tuple[int, str, str]],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
) -> list[Window]:
    """The windows of (number, question, context): cut by the teacher's tokens, the same text for the student."""
    options = {"truncation": "only_second", "max_length": max_length, "stride": doc_stride}
    _, questions, contexts = map(list, zip(*examples, strict=True))
    teacher_tokens = teacher_tokenizer(questions, contexts, return_overflowing_tokens=True, **options, **OUTPUTS)
    parts = []  # of contexts: the teacher's row, its example, the first character, the one behind the last
    for row, example in enumerate(teacher_tokens["overflow_to_sample_mapping"]):
        offsets = zip(teacher_tokens["offset_mapping"][row], teacher_tokens.sequence_ids(row), strict=True)
        inside = [span for span, text in offsets if text == 1]
        if inside:
            parts.append((row, example, min(span[0] for span in inside), max(span[1] for span in inside)))
    if not parts:
        return []
    texts = [[questions[i] for _, i, _, _ in parts], [contexts[i][begin:end] for _, i, begin, end in parts]]
    student_tokens = tokenizer(*texts, verbose=False, **OUTPUTS)
    windows = []
    for index, (row, example, begin, _) in enumerate(parts):
        start = len(questions[example]) + 1
        full_texts, window_texts = (questions[example], contexts[example]), (questions[example], texts[1][index])
        sequence_ids = student_tokens.sequence_ids(index)
        in_context = np.array([text == 1 for text in sequence_ids])
        windows.append(
            Window(
                examples[example][0],
                {name: teacher_tokens[name][row] for name in teacher_tokens},
                text_spans(
                    teacher_tokens["offset_mapping"][row], teacher_tokens.sequence_ids(row), [0, start], full_texts
                ),
                {name: student_tokens[name][index] for name in student_tokens},
                text_spans(student_tokens["offset_mapping"][index], sequence_ids, [0, start + begin], window_texts),
                np.where(in_context[:, None], np.array(student_tokens["offset_mapping"][index]) + begin, -1),
            )
        )
    return windows


def _columns(
    window: Window,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    answers: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """The columns of a window: the student's tokens and labels, the teacher's tokens, and their alignment."""
    row: dict[str, Any] = {name: window.student[name] for name in input_columns(window.student, tokenizer)}
    ids = row["input_ids"]
    labels = label(answers, window.context, null_position(ids, tokenizer))
    row |= {"length": len(ids), **dict(zip(LABEL_COLUMNS, labels, strict=True))}
    teacher_row = {name: [value] for name, value in window.teacher.items()}
    paired = paired_columns(teacher_row, teacher_tokenizer, [window.spans], [window.student_spans])
    return {**{name: [value] for name, value in row.items()}, **paired}
