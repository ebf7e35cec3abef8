"""Rows of text as tokens: checked, tokenised, and kept in the cache of `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from itrd_nlp.distillation.paired import paired_columns, spans_of, starts_of, unread_tokens
from itrd_nlp.distillation.teacher_columns import COLUMNS
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.hashing import data_digest, digest
from itrd_nlp.utils.tokenizers import backend_state, input_columns
from itrd_nlp.utils.unicode import is_text

VERSION = 3  # of the cached features that the tokenising functions make: raise it with each change
MAX_LENGTH = 256  # tokens of a text, or of both texts of a pair
# at most, of a query and a document for a saved reranker: its tokenizer says by model_max_length where it was trained
# to cut, and other libraries cut there
RERANKER_LENGTH = 512


def text_length(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None, limit: int | None = None, default: int = MAX_LENGTH
) -> int:
    """Tokens beyond which a text is cut: by default ``default``, or what tokenizer and model take if that is less.

    Args:
        limit: tokens that a model takes; None: there is none yet.

    Raises:
        UserError: fewer than leave room for a text, or more than the tokenizer or the model takes.
    """
    most = tokenizer.model_max_length if limit is None else min(tokenizer.model_max_length, limit)
    length = min(default, most) if max_length is None else max_length
    if not tokenizer.num_special_tokens_to_add(pair=True) < length <= most:
        raise UserError(
            f"max_length {length}: expected more than the special tokens of a text, and at most the {most} tokens "
            f"that the {'tokenizer' if limit is None else 'model'} takes"
        )
    return length


def check_texts(texts: Sequence[Any], source: str) -> None:
    """Raise :class:`UserError` for a row that is not text, or not valid Unicode."""
    for i, text in enumerate(texts):
        check_text(text, f"row {i} of '{source}'")


def check_text(text: Any, where: str, column: str = "") -> None:
    """Raise :class:`UserError` for what is not text, or not valid Unicode; ``where`` and ``column`` say which cell."""
    if not isinstance(text, str):
        named = f" in column '{column}'" if column else ""
        raise UserError(f"{where}: expected text{named}, found {text!r:.40}")
    if not is_text(text):
        named = f"column '{column}', " if column else ""
        raise UserError(f"{where}: half a character in {named}{text!r:.40}; expected whole ones, as in UTF-8")


def tokenise(
    rows: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    special: bool,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    truncation: str = "longest_first",
) -> dict[str, Any]:
    """Tokenise n texts or pairs of texts; ``special`` adds ``special_tokens_mask``.

    With a ``teacher_tokenizer``, they become its tokens too, cut at the same number of them. Those of text that the
    student does not read count as special where there are ``special`` ones; embeddings are of all that
    the teacher reads.
    """
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    options = {"truncation": truncation, "return_special_tokens_mask": special}
    options["return_offsets_mapping"] = teacher_tokenizer is not None
    tokens = tokenizer(*texts, max_length=max_length, **options)
    more = {"labels": rows["labels"]} if "labels" in rows else {}
    more |= {name: [*np.array(rows[name], np.float32)] for name in COLUMNS if name in rows}
    if teacher_tokenizer is not None:
        limit = min(max_length, teacher_tokenizer.model_max_length)
        teacher_tokens = teacher_tokenizer(*texts, max_length=limit, **options)
        spans, student_spans = [spans_of(each, texts) for each in (teacher_tokens, tokens)]
        unread = unread_tokens(spans, student_spans, tokens.encodings, starts_of(texts))
        more |= paired_columns(teacher_tokens, teacher_tokenizer, spans, student_spans, unread)
    return model_columns(tokens, tokenizer, more)


def model_columns(tokens: Any, tokenizer: PreTrainedTokenizerBase, more: dict[str, Any]) -> dict[str, Any]:
    """The columns of a tokenizer's output that a model or its pooling reads, ``length``, and ``more``."""
    names = input_columns(tokens, tokenizer)
    return {**{name: tokens[name] for name in names}, "length": [len(ids) for ids in tokens["input_ids"]], **more}


def cached_features(
    data: Dataset,
    function: Callable[..., Any],
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
    options: dict[str, Any],
    num_proc: int | None,
    description: str,
    version: int = VERSION,
    with_indices: bool = False,
) -> Dataset:
    """Map ``function`` over batches of ``data``, or read its earlier results from the cache of `datasets`.

    Args:
        tokenizers: the student's, and the teacher's where it has one of its own.
    """
    named = dict(zip(("tokenizer", "teacher_tokenizer"), filter(None, tokenizers), strict=False))
    identity = [part for tokenizer in named.values() for part in tokenizer_identity(tokenizer)]
    identity += [tokenizer.model_max_length for tokenizer in tokenizers[1:] if tokenizer is not None]
    key = digest([function.__name__, data_digest(data), identity, options, version])
    folder = features_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return data.map(
            function,
            new_fingerprint=key,
            cache_file_name=str(folder / f"{function.__name__}-{key}.arrow"),
            batched=True,
            with_indices=with_indices,
            remove_columns=data.column_names,
            num_proc=num_proc,
            desc=description,
            fn_kwargs={**named, **options},
        )


def features_folder() -> Path:
    """Where tokenised examples are kept, for all runs."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "itrd_nlp"


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """JSON values that decide the tokens of a text."""
    backend = backend_state(tokenizer) | {"truncation": None, "padding": None}
    side = [tokenizer.truncation_side] if tokenizer.truncation_side != "right" else []
    splits = ["split_special_tokens"] if tokenizer.split_special_tokens else []
    return [backend, tokenizer.special_tokens_map, tokenizer.model_input_names, *side, *splits]
