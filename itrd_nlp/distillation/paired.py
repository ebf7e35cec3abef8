"""Texts as the tokens of two tokenizers: the student's, and beside them the teacher's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.distillation.alignment import (
    ALIGNMENT,
    FIRST_TOKENS,
    TEACHER,
    WEIGHTS,
    Span,
    align,
    is_paired,
    text_spans,
    unread_indices,
)
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import PAD_MULTIPLE, window_limit
from itrd_nlp.utils.tokenizers import check_tokenizer, input_columns, tokenizers_differ

VERSION = 4  # of the columns that `pair_dataset` adds: raise it with each change
NO_LIMIT = 2**31 - 1  # tokens; a tokenizer without a limit has one that `tokenizers` cannot take
TEXTS = (("text", "text_pair"), ("text",), ("question", "context"))  # columns in which a dataset keeps its texts


class PairedCollator:
    """Pads the teacher's columns, where rows have them, and leaves the student's to ``collator``."""

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Any]], teacher_tokenizer: PreTrainedTokenizerBase):
        self.collator = collator
        self.names = [*teacher_tokenizer.model_input_names, "special_tokens_mask"]
        self.pad = DataCollatorWithPadding(teacher_tokenizer, pad_to_multiple_of=PAD_MULTIPLE)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        own = [
            {k: v for k, v in row.items() if not k.startswith(TEACHER) and k not in (ALIGNMENT, FIRST_TOKENS)}
            for row in rows
        ]
        batch = dict(self.collator(own))
        if not is_paired(rows[0]):
            return batch
        names = [name for name in self.names if TEACHER + name in rows[0]]
        padded = self.pad([{name: row[TEACHER + name] for name in names} for row in rows])
        batch |= {TEACHER + name: padded[name] for name in names}
        pairs = [torch.tensor(row[ALIGNMENT]).view(len(row[ALIGNMENT]) // 4, 4) for row in rows]
        padded_pairs = torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True)  # with weights of 0
        # integers apart: DeepSpeed and FSDP2 round the floats of a batch to half precision
        batch[ALIGNMENT], batch[WEIGHTS] = padded_pairs[..., :2].long(), padded_pairs[..., 2:]
        for prefix in ("", TEACHER) if FIRST_TOKENS in rows[0] else ():
            length = batch[f"{prefix}input_ids"].shape[1]
            masks = [[*row[prefix + FIRST_TOKENS], *[0] * (length - len(row[prefix + FIRST_TOKENS]))] for row in rows]
            batch[prefix + FIRST_TOKENS] = torch.tensor(masks)
        return batch


def paired_columns(
    tokens: Any,
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[list[Span]],
    student_spans: Sequence[list[Span]],
    unread: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The columns of the teacher's tokens of n texts: what it reads, its special tokens, lengths, and the alignment.

    Args:
        spans: those of its tokens.
        student_spans: those of the student's.
        unread: of :func:`unread_tokens`; these count as special, so that no pooling makes samples of them.
    """
    names = input_columns(tokens, tokenizer)
    # the types that `datasets` gives these columns under their own names: one digest, whatever the student
    types = {name: np.int32 if name == "input_ids" else np.int8 for name in names}
    columns: dict[str, list[Any]] = {name: [np.array(row, types[name]) for row in tokens[name]] for name in names}
    for mask, indices in zip(columns.get("special_tokens_mask", []), unread or [], strict=False):
        mask[indices] = 1
    columns["length"] = [len(ids) for ids in tokens["input_ids"]]
    pairs = [np.array(align(*both), np.float32).flatten() for both in zip(spans, student_spans, strict=True)]
    return {**{TEACHER + name: values for name, values in columns.items()}, ALIGNMENT: pairs}


def starts_of(texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """The characters before each text of n texts, ``texts[0]``, or pairs of texts."""
    return [[0, len(first) + 1] for first in texts[0]]


def spans_of(tokens: Any, texts: Sequence[Sequence[str]]) -> list[Any]:
    """The spans of n tokenised texts, ``texts[0]``, or pairs of texts."""
    examples = zip(tokens["offset_mapping"], starts_of(texts), zip(*texts, strict=True), strict=True)
    return [text_spans(row, tokens.sequence_ids(i), *example) for i, (row, *example) in enumerate(examples)]


def unread_tokens(
    spans: Sequence[list[Span]],
    student_spans: Sequence[list[Span]],
    tokens: Sequence[Any],
    starts: Sequence[Sequence[int]],
) -> list[list[int]]:
    """The indices of the teacher's tokens that stand for text which the student, whose tokens were cut, does not read.

    Args:
        spans, student_spans: of the teacher's tokens, and of the student's, of n examples.
        tokens: the student's n encodings, which know what was cut.
        starts: the characters before each text.
    """
    examples = zip(spans, student_spans, tokens, starts, strict=True)
    return [
        unread_indices(of_teacher, of_student, first) if encoding.overflowing else []
        for of_teacher, of_student, encoding, first in examples
    ]


def word_spans(tokens: Any, words: Sequence[Sequence[str]]) -> list[Any]:
    """The spans of n tokenised lists of words, as if a blank stood between words."""
    spans = []
    for i, offsets in enumerate(tokens["offset_mapping"]):
        ends = [0]
        for word in words[i]:
            ends.append(ends[-1] + len(word) + 1)
        of_words = tokens.word_ids(i)
        texts = [None if word is None else 0 for word in of_words]
        starts = [ends[word or 0] for word in of_words]
        moved = [(begin + start, end + start) for (begin, end), start in zip(offsets, starts, strict=True)]
        spans.append(text_spans(moved, texts, [0]))
    return spans


def first_tokens(word_ids: Sequence[int | None], words: Collection[int]) -> list[int]:
    """1 at the first token of each of ``words``, 0 elsewhere."""
    before = [None, *word_ids]
    return [int(word != last and word in words) for word, last in zip(word_ids, before, strict=False)]


def pair_dataset(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> Dataset:
    """Add the teacher's tokens to a tokenised dataset that keeps its texts.

    Args:
        data: a ``datasets.Dataset`` of the student's ``input_ids``, with the texts that they stand for: a column
            ``text``, and ``text_pair`` for pairs; or ``question`` and ``context``.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's.
        max_length: tokens that the teacher takes, beyond which texts are cut for it; None: as its tokenizer says.

    Raises:
        UserError: a slow tokenizer, no such column, or token ids that are not those of the text.
    """
    columns = getattr(data, "column_names", None) or []
    names = next((names for names in TEXTS if set(names) <= {*columns}), None)
    if names is None or "input_ids" not in columns or not isinstance(data, Dataset):
        raise UserError(
            f"teacher_processing_class with training data of the columns {', '.join(columns) or 'none'}: expected a "
            "datasets.Dataset of input_ids that keeps its texts, as text (and text_pair), or question and context"
        )
    for each in (tokenizer, teacher_tokenizer):
        check_tokenizer(each)
    limit = min(max_length or NO_LIMIT, teacher_tokenizer.model_max_length, NO_LIMIT)
    options = {"names": names, "tokenizer": tokenizer, "teacher_tokenizer": teacher_tokenizer, "max_length": limit}
    options["version"] = VERSION  # `datasets` would take the rows that an earlier version cached
    return data.map(_pair, batched=True, with_indices=True, fn_kwargs=options, desc="Tokenising for the teacher")


def paired_inputs(
    data: Any,
    collator: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | None,
) -> tuple[Any, Any]:
    """The training data and the collator, with the teacher's tokens where its tokenizer is another one.

    Raises:
        UserError: as :func:`pair_dataset`; or no tokenizer of the student.
    """
    if tokenizer is None:
        raise UserError("teacher_processing_class alone: expected the student's tokenizer as processing_class too")
    if not tokenizers_differ(tokenizer, teacher_tokenizer):
        return data, collator
    limit = None if teacher is None else window_limit(teacher)
    return pair_dataset(data, tokenizer, teacher_tokenizer, limit), PairedCollator(collator, teacher_tokenizer)


def _pair(
    rows: Mapping[str, Any],
    indices: Sequence[int],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    version: int,
) -> dict[str, Any]:
    texts = [rows[name] for name in names]
    student_spans, encodings = [], []
    for i, padded in enumerate(rows["input_ids"]):
        ids = list(itertools.compress(padded, rows["attention_mask"][i])) if "attention_mask" in rows else padded
        tokens = _same_tokens([text[i : i + 1] for text in texts], ids, tokenizer)
        if tokens is None:
            raise UserError(
                f"row {indices[i]}: the student's tokenizer does not make its input_ids of its {' and '.join(names)}: "
                "expected the text that was tokenised; keep a window's own part of its context"
            )
        student_spans += spans_of(tokens, [text[i : i + 1] for text in texts])
        encodings += tokens.encodings
    outputs = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
    tokens = teacher_tokenizer(*texts, truncation=True, max_length=max_length, **outputs)
    spans = spans_of(tokens, texts)
    unread = unread_tokens(spans, student_spans, encodings, starts_of(texts))
    if "special_tokens_mask" not in rows:  # all of the student's tokens are pooled: those of the teacher too
        tokens["special_tokens_mask"] = [[0] * len(ids) for ids in tokens["input_ids"]]
    return paired_columns(tokens, teacher_tokenizer, spans, student_spans, unread)


def _same_tokens(texts: Sequence[Sequence[str]], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokens of one example, cut as its ``ids`` were; None where no way of cutting gives those."""
    for truncation in ("longest_first", *(("only_second",) if len(texts) == 2 else ())):
        try:
            tokens = tokenizer(*texts, truncation=truncation, max_length=len(ids), return_offsets_mapping=True)
        except Exception:  # a first text longer than the limit, of which `tokenizers` raises no class of its own
            continue
        if tokens["input_ids"][0] == list(ids):
            return tokens
    return None
