"""The task of token classification: a tag for each word, such as those of named entities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from itrd_nlp.errors import UserError
from itrd_nlp.text.rows import Rows
from itrd_nlp.text.rows_task import RowsTask, kept
from itrd_nlp.text.scores import check_finite, f1_of_counts

OUTSIDE = "O"
IGNORED = -100  # what the loss leaves out: special tokens, and all of a word's tokens but its first


class TaggingTask(RowsTask):
    """A tag for each word: precision, recall and F1 of entities, and the accuracy of tags.

    A word's tag is that of its first token. Tags are in any of IOB1, IOB2 and IOBES, read as ``conlleval`` does; one
    without such a prefix, as of parts of speech, counts word by word. Words beyond ``max_length`` count as not found.

    Rows hold words and tags as lists, or as texts with blanks between them.

    Raises:
        UserError: as :class:`RowsTask`; tags and words of different number, or an unknown tag.
    """

    model_class = AutoModelForTokenClassification
    metric_names = ("precision", "recall", "f1")
    counted = "sentences"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, train: Rows | None, validation: Rows | None, **options: Any
    ) -> None:
        super().__init__(tokenizer, train, validation, **options)
        self.collator = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=8)
        try:
            tokenizer([["a"]], is_split_into_words=True)
        except (AssertionError, ValueError):
            kind = type(tokenizer).__name__
            raise UserError(
                f"{kind} takes no words: load it with add_prefix_space=True, save it, --tokenizer FOLDER"
            ) from None

    def named(self, label: Any) -> list[str]:
        """The tags of a sentence."""
        return [str(tag) for tag in _words(label)]

    def read(self, rows: Rows) -> Dataset:
        """The columns text, a list of words, and labels, a list of numbers."""
        words = [_words(text) for text in rows.texts[0]]
        for i, some in enumerate(words):
            if not some or not all(isinstance(word, str) for word in some):
                raise UserError(f"row {i} of '{rows.source}': expected words, found {rows.texts[0][i]!r:.40}")
        return Dataset.from_dict({"text": words} | ({} if rows.labels is None else {"labels": self.encode(rows)}))

    def encode(self, rows: Rows) -> list[Any]:
        """The number of each word's tag, row by row."""
        tags = [self.named(label) for label in rows.labels or []]
        for i, (text, each) in enumerate(zip(rows.texts[0], tags, strict=True)):
            if (count := len(_words(text))) != len(each):
                raise UserError(f"row {i} of '{rows.source}' has {count} words and {len(each)} tags: expected as many")
        return [[self.place(tag, i, rows.source) for tag in each] for i, each in enumerate(tags)]

    def tokenising(self) -> tuple[Callable[..., dict[str, Any]], dict[str, Any]]:
        """The function that makes features of rows, and its options but the tokenizer."""
        return tokenise_words, {"max_length": self.max_length}

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `metric_names` says, ``accuracy`` of tags, ``total`` entities; of each sentence how many entities are
        right, found and gold. Where nothing is found, or nothing is there to find, all three are 0, as in seqeval."""
        assert self.eval_dataset is not None
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        counts, hits, words = [], 0, 0
        for best, row in zip(
            check_finite(logits).argmax(2), self.eval_dataset.select_columns(["tags", "words", "labels"]), strict=True
        ):
            expected = [self.class_names[tag] for tag in row["tags"]]
            tags = [OUTSIDE] * len(expected)
            firsts = [place for place, label in enumerate(row["labels"]) if label != IGNORED]
            for word, place in zip(row["words"], firsts, strict=True):
                tags[word] = self.class_names[best[place]]
                hits += tags[word] == expected[word]  # a word that the model did not read is never right
            found, gold = entities(tags), entities(expected)
            counts.append([len(found & gold), len(found), len(gold)])
            words += len(tags)
        right, found_all, gold_all = np.sum(counts, axis=0).tolist()
        scores = {"precision": 100.0 * right / max(1, found_all), "recall": 100.0 * right / max(1, gold_all)}
        scores |= {"f1": float(f1_of_counts(counts)), "accuracy": 100.0 * hits / words, "total": gold_all}
        return scores, {"f1": counts}


def tokenise_words(rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """Tokens of n sentences; where there are tags, ``labels`` at each word's first token, the places of these words in
    the sentence as ``words``, and the tags of all words as ``tags``."""
    tokens = tokenizer(
        rows["text"], is_split_into_words=True, truncation=True, max_length=max_length, return_special_tokens_mask=True
    )
    if "labels" not in rows:
        return kept(tokens, tokenizer, {})
    labels, words = [], []
    for row, tags in enumerate(rows["labels"]):
        ids = tokens.word_ids(row)
        first = [word is not None and word != before for before, word in zip([None, *ids], ids, strict=False)]
        labels.append([tags[word] if new else IGNORED for word, new in zip(ids, first, strict=True)])
        words.append([word for word, new in zip(ids, first, strict=True) if new])
    return kept(tokens, tokenizer, {"labels": labels, "words": words, "tags": rows["labels"]})


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (type, first word, word after the last) of all entities, as ``conlleval`` reads them.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
        >>> sorted(entities(["NOUN", "NOUN"]))
        [('NOUN', 0, 1), ('NOUN', 1, 2)]
    """
    spans, kind, start = set(), "", -1  # -1: none is open
    for i, tag in enumerate([*tags, OUTSIDE]):
        prefix, dash, name = tag.partition("-")
        if not (dash and prefix in ("B", "I", "E", "S")):
            prefix, name = (OUTSIDE, "") if tag == OUTSIDE else ("S", tag)
        if start >= 0 and not (prefix in ("I", "E") and name == kind):
            spans.add((kind, start, i))
            start = -1
        if prefix != OUTSIDE and start < 0:
            kind, start = name, i
        if prefix in ("E", "S"):
            spans.add((kind, start, i + 1))
            start = -1
    return spans


def _words(cell: Any) -> list[Any]:
    """The words or tags of a cell: a list, or a text with blanks between them; none of an empty one."""
    return cell.split() if isinstance(cell, str) else list(cell or [])
