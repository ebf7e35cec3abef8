"""The base of the tasks on rows of text: from rows to tokenised examples."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from itrd_nlp.distillation.paired import PairedCollator, paired_columns, spans_of
from itrd_nlp.distillation.teacher_columns import COLUMNS, LOGITS, teacher_columns, without_teacher
from itrd_nlp.models.classes import known_classes, label_fields, listed
from itrd_nlp.tasks.base import TextTask
from itrd_nlp.tasks.labels import Labels, Splits, label_names
from itrd_nlp.tasks.metrics import SCORES_VERSION
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.teacher_files import Outputs, columns_of, head_classes, read_logits
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.hashing import data_digest, digest
from itrd_nlp.utils.tokenizers import check_tokenizer

VERSION = 1  # of the cached features that the tokenising functions make: raise it with each change
MAX_LENGTH = 256  # tokens of a text, or of both texts of a pair


class RowsTask(TextTask):
    """The base of the tasks on rows; see :class:`itrd_nlp.tasks.base.Task`.

    Args:
        tokenizer: fast, padding on the right.
        train: or None; without labels it serves to distil.
        validation: or None; its labels are what a model is scored by.
        teacher: as a recipe names it. One that has the head gives the classes and their order; else ``train`` does.
            None: its outputs are read from the columns that :attr:`output_columns` names, where the rows have them.
        train_count, eval_count: use the first so many rows; None: all.
        max_length: tokens of a text, or of both texts of a pair, beyond which it is cut; None: 256, or what the
            tokenizer takes.
        num_proc: processes that tokenise; None: this one.
        teacher_tokenizer: fast; training rows are tokenised by it too. None: teacher and student share the tokenizer.
        task_weight: of the labels. Training rows without one are left out, unless it is 0: then the student learns
            from the teacher alone, from all rows.

    Raises:
        UserError: a tokenizer that cannot serve, classes that are not the teacher's, or a row that cannot be read.
    """

    model_class: Any
    problem_type: str | None = None  # decides the loss of the head
    name: str  # of the task, in messages
    examples = "texts"  # what the record calls the rows
    output_columns: tuple[str, ...] = ()  # of a file, that may hold a teacher's outputs
    output_name = LOGITS  # what the dataset calls them

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train: Rows | None,
        validation: Rows | None,
        *,
        teacher: Any = None,
        train_count: int | None = None,
        eval_count: int | None = None,
        max_length: int | None = None,
        num_proc: int | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        task_weight: float = 1.0,
    ):
        check_tokenizer(tokenizer)
        self.tokenizer, self.num_proc = tokenizer, num_proc
        self.teacher_tokenizer = teacher_tokenizer
        self.max_length = min(MAX_LENGTH, tokenizer.model_max_length) if max_length is None else max_length
        if not tokenizer.num_special_tokens_to_add(pair=True) < self.max_length <= tokenizer.model_max_length:
            raise UserError(
                f"max_length {max_length}: expected more than the special tokens of a text, and at most the "
                f"{tokenizer.model_max_length} tokens that the tokenizer takes"
            )
        self.collator = self.make_collator()
        if teacher_tokenizer is not None:
            check_tokenizer(teacher_tokenizer)
            self.collator = PairedCollator(self.collator, teacher_tokenizer)
        for rows in (train, validation):
            if rows is not None:
                self.check_rows(rows)
        reads = self.output_columns if teacher is None else ()
        labels = self.read_labels([train, validation], self._head_classes(train, teacher, reads))
        self.class_names = labels.classes
        self.config_fields = label_fields(self.class_names, self.problem_type)
        if validation is not None and labels.splits[1] is None:
            raise UserError(f"'{validation.source}' has no labels to score a model by; see --label_column")
        self.descriptions: list[str] = []
        self.train = self._labelled(train, labels, 0, train_count, reads, teacher_alone=task_weight == 0)
        self.validation = self._labelled(validation, labels, 1, eval_count, reads)
        self.labelled = self.train is None or "labels" in self.train.column_names

    def make_collator(self) -> Any:
        """What pads a batch of tokenised rows."""
        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8)

    @abstractmethod
    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The classes, and the labels of the rows for training and validation; see :mod:`itrd_nlp.tasks.labels`."""

    def _head_classes(self, train: Rows | None, teacher: Any, reads: Sequence[str]) -> list[str]:
        """The classes of a teacher: of a model's head, or as the training data names them for its outputs."""
        if not reads or self.problem_type in (None, "regression"):
            return known_classes(teacher, self.model_class)
        return head_classes(train, reads, label_names(train, self.problem_type == "multi_label_classification"))

    def read_outputs(self, rows: Rows) -> Outputs:
        """A teacher's outputs in the columns of a file: logits, unless a task has others."""
        independent = self.problem_type == "multi_label_classification"
        return read_logits(rows, self.output_columns, self.class_names, independent)

    def teacher_prediction(self) -> EvalPrediction | None:
        """The outputs in the validation data's columns, in the order of `eval_dataset`; None where it has none."""
        columns = teacher_columns(self.validation)
        if self.validation is None or self.eval_dataset is None or not columns:
            return None
        outputs = np.asarray(self.validation[columns[0]][:], dtype=np.float64)
        return EvalPrediction(outputs[self.order], np.asarray(self.eval_dataset["labels"][:]))

    def _labelled(
        self,
        rows: Rows | None,
        labels: Labels,
        split: int,
        count: int | None,
        reads: Sequence[str],
        teacher_alone: bool = False,
    ) -> Dataset | None:
        """The first rows of a split that have a label, or the first of all rows where none has one.

        Args:
            reads: columns that may hold a teacher's outputs.
            teacher_alone: where some rows have no label, keep all rows and drop the labels.
        """
        if rows is None:
            return None
        values, total = labels.splits[split], len(rows.texts[0])
        notes = []
        if unlabelled := sum(value is None for value in values or ()):
            action = "kept, all learn from the teacher alone" if teacher_alone else "left out"
            notes.append(f"{unlabelled:,} without a label {action}")
            values = None if teacher_alone else values
        notes += labels.notes[split]
        if rows.unused:
            notes.append(rows.unused)
        columns = columns_of(rows, reads)
        if rows.outputs and not columns:
            notes.append(f"not read: {', '.join(rows.outputs)}")
        labelled = [i for i in range(total) if values is None or values[i] is not None]
        indices = self.first(rows, labelled, count)
        if count is not None:
            notes.append(f"the first {len(indices):,} used")
        outputs = self.read_outputs(rows) if columns else Outputs([], [])  # of all rows: messages number them
        notes += [*(f"teacher's outputs from {column}" for column in columns), *outputs.notes]
        source = f"{rows.source}, {rows.split}" if rows.split else rows.source
        summary = f"{source}: {total:,} rows, {self.name}, {self.summarize_labels(rows, values)}"
        self.descriptions.append("; ".join([summary, *notes]))
        data = self.to_dataset(rows._replace(labels=values).select(indices))
        if not outputs.values:
            return data
        return data.add_column(self.output_name, [row for array in outputs.values for row in array[indices]])

    def first(self, rows: Rows, indices: list[int], count: int | None) -> list[int]:
        """The first ``count`` of the rows at some indices; all of them without a count."""
        return indices[:count]

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """The labels of a split, in words."""
        return "no labels" if values is None else f"{len(self.class_names)} classes: {listed(self.class_names)}"

    def check_rows(self, rows: Rows) -> None:
        """Raise :class:`UserError` for a row whose text cannot be tokenised."""
        for texts in rows.texts:
            check_texts(texts, rows.source)

    def to_dataset(self, rows: Rows) -> Dataset:
        """The columns text, text_pair of pairs, and labels where there are any, as :meth:`tokenising` needs them.

        Args:
            rows: with labels as the model takes them.
        """
        columns: dict[str, Any] = dict(zip(("text", "text_pair"), rows.texts, strict=False))
        return Dataset.from_dict(columns if rows.labels is None else {**columns, "labels": rows.labels})

    def tokenising(self) -> tuple[Callable[..., dict[str, Any]], dict[str, Any]]:
        """The function that makes features of rows, and its options but the tokenizer."""
        return tokenise, {"max_length": self.max_length, "special": True}

    @cached_property
    def train_dataset(self) -> Dataset | None:
        """Tokenised training rows."""
        return None if self.train is None else self._features(self.train, self.teacher_tokenizer)

    @cached_property
    def eval_dataset(self) -> Dataset | None:
        """Tokenised validation rows, longest first: batches of them need little padding."""
        if self.validation is None:
            return None
        features = self._features(without_teacher(self.validation))
        self.order = np.argsort(features["length"], kind="stable")[::-1]
        return features.select(self.order).flatten_indices()

    def _features(self, data: Dataset, teacher_tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
        function, options = self.tokenising()
        tokenizers = (self.tokenizer, teacher_tokenizer)
        return cached_features(data, function, tokenizers, options, self.num_proc, "Tokenising texts")

    def scoring(self) -> list[Any]:
        """What decides the scores of given logits beside the tokenised rows."""
        return [SCORES_VERSION, *self.class_names]

    def summary(self) -> dict[str, int]:
        """How many rows are trained and evaluated on, for the record."""
        splits = {"training": self.train, "validation": self.validation}
        return {f"{name} {self.examples}": len(data) for name, data in splits.items() if data is not None}

    def describe(self) -> list[str]:
        """A line for each split: its rows, its classes, and what was left out."""
        return self.descriptions


def check_texts(texts: Sequence[Any], source: str) -> None:
    """Raise :class:`UserError` for a row that is not text, or not valid Unicode."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"row {i} of '{source}': expected text, found {text!r:.40}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"row {i} of '{source}': half a character in {text!r:.40}; expected whole ones, as in UTF-8"
            )


def tokenise(
    rows: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    special: bool,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    truncation: str = "longest_first",
) -> dict[str, Any]:
    """Tokenise n texts or pairs of texts; ``special`` adds ``special_tokens_mask``.

    With a ``teacher_tokenizer``, they become its tokens too, cut at the same number of them.
    """
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    options = {"truncation": truncation, "return_special_tokens_mask": special}
    options["return_offsets_mapping"] = teacher_tokenizer is not None
    tokens = tokenizer(*texts, max_length=max_length, **options)
    more = {name: rows[name] for name in ("labels", *COLUMNS) if name in rows}
    if teacher_tokenizer is not None:
        theirs = teacher_tokenizer(*texts, max_length=min(max_length, teacher_tokenizer.model_max_length), **options)
        more |= paired_columns(theirs, teacher_tokenizer, spans_of(theirs, texts), spans_of(tokens, texts))
    return model_columns(tokens, tokenizer, more)


def model_columns(tokens: Any, tokenizer: PreTrainedTokenizerBase, more: dict[str, Any]) -> dict[str, Any]:
    """The columns of a tokenizer's output that a model or its pooling reads, ``length``, and ``more``."""
    names = [name for name in (*tokenizer.model_input_names, "special_tokens_mask") if name in tokens]
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
    identity = [part for tokenizer in named.values() for part in _identity(tokenizer)]
    key = digest([function.__name__, data_digest(data), identity, options, version])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "itrd_nlp"
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


def _identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """JSON values that decide the tokens of a text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return [backend, tokenizer.special_tokens_map, tokenizer.model_input_names]
