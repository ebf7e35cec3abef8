"""Windows of questions and contexts as the tokens of two tokenizers: the teacher's and the student's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from itrd_nlp.distillation.alignment import SPANS
from itrd_nlp.distillation.paired import spans_of, teacher_columns
from itrd_nlp.tasks.question_answering.windows import LABEL_COLUMNS, cut_questions, label, question_tokens

VERSION = 1  # of what `make_paired_features` makes, which is cached: raise it with each change


class Window(NamedTuple):
    """A part of a context, in characters."""

    example: int
    begin: int
    end: int


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
        indices: of the questions; not used.
        max_length: of the teacher's windows, in tokens.
        doc_stride: tokens by which they overlap.
        limit: tokens that the student takes.

    Returns:
        Columns of the windows: the student's tokens and labels, its spans, and the teacher's tokens and spans.
    """
    questions = cut_questions(teacher_tokenizer, list(examples["question"]), question_tokens(max_length))
    contexts = list(examples["context"])
    columns: dict[str, list[Any]] = {}
    waiting = {max_length: list(range(len(questions)))}  # tokens of a window -> examples to cut so
    while waiting:
        length, numbers = waiting.popitem()
        windows, theirs = _teacher_windows(questions, contexts, numbers, teacher_tokenizer, length, doc_stride)
        if not windows:
            continue
        parts = [contexts[w.example][w.begin : w.end] for w in windows]
        asked = [questions[w.example] for w in windows]
        options = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
        tokens = tokenizer(asked, parts, **options)
        longest: dict[int, int] = {}
        for window, ids in zip(windows, tokens["input_ids"], strict=True):
            longest[window.example] = max(len(ids), longest.get(window.example, 0))
        for example, count in longest.items():
            if count > limit and length > 16:  # shorter windows: the student cuts this text into more tokens
                waiting.setdefault(min(length - 8, length * limit // count), []).append(example)
        fitting = [i for i, window in enumerate(windows) if longest[window.example] <= limit]
        made = _student_columns(tokens, tokenizer, windows, examples["answers"], asked, parts)
        made |= theirs
        for name, values in made.items():
            columns.setdefault(name, []).extend(values[i] for i in fitting)
    return columns


def _teacher_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    numbers: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
) -> tuple[list[Window], dict[str, list[Any]]]:
    """The windows of some examples, and the teacher's columns of them."""
    room = max_length - question_tokens(max_length) - tokenizer.num_special_tokens_to_add(pair=True)
    tokens = tokenizer(
        [questions[i] for i in numbers],
        [contexts[i] for i in numbers],
        truncation="only_second",
        max_length=max_length,
        stride=min(doc_stride, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    windows, rows = [], []
    for row, number in enumerate(tokens["overflow_to_sample_mapping"]):
        offsets = np.array(tokens["offset_mapping"][row])[[part == 1 for part in tokens.sequence_ids(row)]]
        if len(offsets):
            rows.append(row)
            windows.append(Window(numbers[number], int(offsets[:, 0].min()), int(offsets[:, 1].max())))
    of_row = tokens["overflow_to_sample_mapping"]
    texts = [[questions[numbers[i]] for i in of_row], [contexts[numbers[i]] for i in of_row]]
    columns = teacher_columns(tokens, tokenizer, spans_of(tokens, texts))
    return windows, {name: [values[row] for row in rows] for name, values in columns.items()}


def _student_columns(
    tokens: Any,
    tokenizer: PreTrainedTokenizerBase,
    windows: Sequence[Window],
    answers: Sequence[Mapping[str, Any]],
    questions: Sequence[str],
    parts: Sequence[str],
) -> dict[str, list[Any]]:
    """The student's tokens of windows, the labels, and the spans in the coordinates of the complete context."""
    names = [name for name in (*tokenizer.model_input_names, "special_tokens_mask") if name in tokens]
    columns: dict[str, list[Any]] = {name: tokens[name] for name in names}
    columns |= {"length": [len(ids) for ids in tokens["input_ids"]], SPANS: [], **{name: [] for name in LABEL_COLUMNS}}
    for row, (window, spans) in enumerate(zip(windows, spans_of(tokens, [questions, parts]), strict=True)):
        context = np.array([part == 1 for part in tokens.sequence_ids(row)])
        moved = np.array(spans) + np.where(context, window.begin, 0)[:, None]
        columns[SPANS].append(moved.tolist())
        ids = tokens["input_ids"][row]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        offsets = np.where(context[:, None], np.array(tokens["offset_mapping"][row]) + window.begin, -1)
        for name, position in zip(LABEL_COLUMNS, label(answers[window.example], offsets, null), strict=True):
            columns[name].append(position)
    return columns
