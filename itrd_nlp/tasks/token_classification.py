"""The task of token classification: a tag for each word, such as those of named entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from itrd_nlp.distillation.alignment import FIRST_TOKENS, TEACHER
from itrd_nlp.distillation.paired import first_tokens, paired_columns, unread_tokens, word_spans
from itrd_nlp.models.classes import first_few
from itrd_nlp.tasks.cells import is_bracketed, is_missing, items_of
from itrd_nlp.tasks.labels import Labels, Splits, read_tags
from itrd_nlp.tasks.metrics import f1_of_counts, logits_of
from itrd_nlp.tasks.rows import WORD_COLUMNS, Rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.tag_schemes import OUTSIDE, entities, scheme_of
from itrd_nlp.tasks.tokenising import model_columns
from itrd_nlp.utils.batches import IGNORED
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tokenizers import for_words, tokenizers_differ
from itrd_nlp.utils.unicode import is_text


def tokenise_words(
    rows: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Tokenise n sentences; tags give ``labels`` at each word's first token, the indices of these words in the sentence
    as ``words``, and the tags of all words as ``tags``.

    With a ``teacher_tokenizer``, they become its tokens too; ``first_tokens`` marks the words that both read.
    """
    options = {"is_split_into_words": True, "truncation": True, "return_special_tokens_mask": True}
    options["return_offsets_mapping"] = teacher_tokenizer is not None
    tokens = tokenizer(rows["text"], max_length=max_length, **options)
    paired = {}
    if teacher_tokenizer is not None:
        limit = min(max_length, teacher_tokenizer.model_max_length)
        teacher_tokens = teacher_tokenizer(rows["text"], max_length=limit, **options)
        spans, student_spans = [word_spans(each, rows["text"]) for each in (teacher_tokens, tokens)]
        unread = unread_tokens(spans, student_spans, tokens.encodings, [[0]] * len(spans))
        columns = paired_columns(teacher_tokens, teacher_tokenizer, spans, student_spans, unread)
        paired = {FIRST_TOKENS: [], TEACHER + FIRST_TOKENS: [], **columns}
        for i in range(len(rows["text"])):
            read = [{word for word in each.word_ids(i) if word is not None} for each in (tokens, teacher_tokens)]
            shared = read[0] & read[1]
            paired[FIRST_TOKENS].append(first_tokens(tokens.word_ids(i), shared))
            paired[TEACHER + FIRST_TOKENS].append(first_tokens(teacher_tokens.word_ids(i), shared))
    if "labels" not in rows:
        return model_columns(tokens, tokenizer, paired)
    labels, words = [], []
    for row, tags in enumerate(rows["labels"]):
        ids = tokens.word_ids(row)
        first = first_tokens(ids, {*ids} - {None})
        labels.append([tags[word] if new else IGNORED for word, new in zip(ids, first, strict=True)])
        words.append([word for word, new in zip(ids, first, strict=True) if new])
    return model_columns(tokens, tokenizer, {"labels": labels, "words": words, "tags": rows["labels"], **paired})


class TaggingTask(RowsTask):
    """A tag for each word: precision, recall and F1 of entities, and the accuracy of tags.

    A word's tag is that of its first token. Tags are in any scheme that :func:`itrd_nlp.tasks.tag_schemes.scheme_of`
    reads, as ``conlleval`` does; those without a scheme, such as parts of speech, count word by word. Words beyond
    ``max_length`` are predicted as outside of entities.

    Rows hold words and tags as lists, as lists that JSON, Python or numpy wrote as text, or separated by blanks. A
    tokenizer that tells words by the blanks before them puts one before each, see
    ``itrd_nlp.utils.tokenizers.for_words``, and is saved so.

    Raises:
        UserError: as :class:`RowsTask`; a tokenizer that cuts words given one by one in another way; numbers of words
            and tags that differ, or an unknown tag.
    """

    name = "tagging"
    columns = WORD_COLUMNS
    model_class = AutoModelForTokenClassification
    metric_names = ("precision", "recall", "f1")
    further_metrics = ("accuracy",)
    examples = "sentences"
    padding = DataCollatorForTokenClassification
    tokenise = staticmethod(tokenise_words)
    token_options: Mapping[str, Any] = {}

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, train: Rows | None, validation: Rows | None, **options: Any
    ) -> None:
        own, of_teacher = for_words(tokenizer), options.pop("teacher_tokenizer", None)
        if of_teacher is not None:
            of_teacher = for_words(of_teacher)
            if tokenizers_differ(own, of_teacher) is None:  # a student of an earlier run was saved with its blanks
                of_teacher = None
        super().__init__(own, train, validation, teacher_tokenizer=of_teacher, **options)

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The number of each word's tag, row by row."""
        labels = read_tags(splits, head_classes)
        for rows, column in zip(splits, labels.splits, strict=True):
            if rows is None or column is None:
                continue
            for i, (words, tags) in enumerate(zip(rows.texts[0], column, strict=True)):
                if tags is not None and len(words) != len(tags):
                    raise UserError(
                        f"row {i} of '{rows.source}' has {len(words)} words and {len(tags)} tags: expected "
                        "one tag per word"
                    )
        self.scheme = scheme_of(labels.classes, "the teacher or the data")
        self.entity_tags = [self.scheme.tags[name] for name in labels.classes]
        return labels

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """The scheme, and the types of entities."""
        if values is None:
            return "no labels"
        types = first_few(self.scheme.types)
        if not self.scheme.name:
            return f"{len(self.scheme.types)} tags that count word by word: {types}"
        return f"scheme {self.scheme.name}, entities: {types}"

    def checked(self, rows: Rows) -> Rows:
        """The rows with lists of words as texts; raises :class:`UserError` for one that holds something else."""
        return rows._replace(texts=[words_of(rows)])

    def is_empty(self, rows: Rows, row: int) -> bool:
        """Whether a row has neither words nor tags."""
        return not rows.texts[0][row]

    def scoring(self) -> list[Any]:
        """What decides the scores of given outputs: rows, classes, and the entities they stand for."""
        return [*super().scoring(), *self.entity_tags]

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics of `metric_names`, ``accuracy`` of tags, ``total`` entities; for each sentence how many entities
        are right, found and gold. Without entities on either side precision, recall and F1 are 0, as in seqeval."""
        assert self.eval_dataset is not None
        best_tags = logits_of(prediction.predictions).argmax(2)
        rows = self.eval_dataset.select_columns(["tags", "words", "labels"])
        counts, hits, words = [], 0, 0
        for best, row in zip(best_tags, rows, strict=True):
            expected = [self.entity_tags[tag] for tag in row["tags"]]
            tags = [OUTSIDE] * len(expected)
            firsts = [token for token, label in enumerate(row["labels"]) if label != IGNORED]
            for word, token in zip(row["words"], firsts, strict=True):
                tags[word] = self.entity_tags[best[token]]
                hits += tags[word] == expected[word]  # a word that the model did not read is never right
            predicted, gold = entities(tags), entities(expected)
            counts.append([len(predicted & gold), len(predicted), len(gold)])
            words += len(tags)
        right, predicted_total, gold_total = np.sum(counts, axis=0).tolist()
        scores = {"precision": 100.0 * right / max(1, predicted_total), "recall": 100.0 * right / max(1, gold_total)}
        scores |= {"f1": float(f1_of_counts(counts)), "accuracy": 100.0 * hits / words, "total": gold_total}
        return scores, {"f1": self.in_file_order(np.array(counts)).tolist()}


def words_of(rows: Rows) -> list[list[str]]:
    """The words of each row: of a list, of a text that is one if all texts are, or with blanks between them.

    Raises:
        UserError: a row that holds something else than words.
    """
    cells = rows.texts[0]
    if all(is_bracketed(cell) for cell in cells if isinstance(cell, str)):
        sentences = [items_of(cell, i, rows.source, "words") for i, cell in enumerate(cells)]
    else:
        lists = [cell.split() if isinstance(cell, str) else cell for cell in cells]
        sentences = [list(words) if isinstance(words, list | tuple) else [] for words in lists]
    for i, words in enumerate(sentences):
        if not all(map(is_text, words)) or not (words or _is_empty(cells[i])):
            raise UserError(f"row {i} of '{rows.source}': expected words, found {cells[i]!r:.40}")
    return sentences


def _is_empty(cell: Any) -> bool:
    """Whether a cell holds no items, or is missing."""
    return is_missing(cell) or (isinstance(cell, list | tuple) and not cell) or cell in ("[]", "()")
