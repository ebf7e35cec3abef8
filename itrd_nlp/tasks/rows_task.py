"""The base of the tasks on rows of text: from rows to tokenised examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from itrd_nlp.distillation.paired import PairedCollator
from itrd_nlp.distillation.teacher_columns import LOGITS, teacher_columns, without_teacher
from itrd_nlp.models.classes import first_few, known_classes, label_fields
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.labels import Labels, Splits, label_names, numbers_of
from itrd_nlp.tasks.metrics import SCORES_VERSION
from itrd_nlp.tasks.rows import CLASSES, Rows
from itrd_nlp.tasks.teacher_files import columns_of, head_classes, read_outputs
from itrd_nlp.tasks.tokenising import MAX_LENGTH, cached_features, check_texts, text_length, tokenise
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import data_digest
from itrd_nlp.utils.modeling import INDEPENDENT, PAD_MULTIPLE
from itrd_nlp.utils.tokenizers import check_tokenizer

KINDS = {1: "single texts", 2: "pairs of texts"}


class RowsTask(Task):
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
    columns = CLASSES  # in which data hold its texts and labels
    examples = "texts"
    default_length = MAX_LENGTH  # of texts
    output_columns: tuple[str, ...] = ()  # of a file, that may hold a teacher's outputs
    output_name = LOGITS  # what the dataset calls them
    padding: type[Any] = DataCollatorWithPadding  # makes a batch of tokenised rows
    tokenise: Callable[..., dict[str, Any]] = staticmethod(tokenise)  # makes features of rows
    token_options: Mapping[str, Any] = {"special": True}  # of it, beside ``max_length``

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
        self.max_length = text_length(tokenizer, max_length, default=self.default_length)
        self.collator = self.padding(tokenizer, pad_to_multiple_of=PAD_MULTIPLE)
        if teacher_tokenizer is not None:
            check_tokenizer(teacher_tokenizer)
            self.collator = PairedCollator(self.collator, teacher_tokenizer)
        train, validation = (None if rows is None else self.checked(rows) for rows in (train, validation))
        self.check_alike(train, validation)
        self.reads = self.output_columns if teacher is None else ()  # columns that may hold a teacher's outputs
        self.teacher_alone = task_weight == 0
        labels = self.read_labels([train, validation], self._head_classes(train, validation, teacher))
        self.class_names = labels.classes
        self.config_fields = label_fields(self.class_names, self.problem_type)
        if validation is not None and labels.splits[1] is None:
            raise UserError(f"'{validation.source}' has no labels to score a model by; see --label_column")
        self.descriptions: list[str] = []
        self.train = self._labelled(train, labels, 0, train_count, teacher_alone=self.teacher_alone)
        self.validation = self._labelled(validation, labels, 1, eval_count)
        self.labelled = self.train is None or "labels" in self.train.column_names

    def check_alike(self, train: Rows | None, validation: Rows | None) -> None:
        """Raise :class:`UserError` where one split has pairs of texts, and the other single ones."""
        if train is not None and validation is not None and len(train.texts) != len(validation.texts):
            layouts = [f"'{rows.source}' has {KINDS[len(rows.texts)]}" for rows in (train, validation)]
            raise UserError(
                f"{', '.join(layouts)}: expected the same in both; name the columns with --text_column "
                "(--text_pair_column)"
            )

    def scored(self, rows: Rows, values: list[Any] | None, indices: list[int]) -> list[int]:
        """The rows to score a model by, of those to validate with that have a label."""
        return indices

    @abstractmethod
    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The classes, and the labels of the rows for training and validation; see :mod:`itrd_nlp.tasks.labels`."""

    @property
    def independent(self) -> bool:
        """Whether several classes may hold at once."""
        return self.problem_type == INDEPENDENT

    def _head_classes(self, train: Rows | None, validation: Rows | None, teacher: Any) -> list[str]:
        """The classes of a teacher: of a model's head, or as the training data names them for its outputs."""
        if not self.reads or self.problem_type in (None, "regression"):
            return known_classes(teacher, self.model_class)
        splits = [rows for rows in (train, validation) if rows is not None]
        numbers = {rows.source: numbers_of(rows, self.independent, splits) for rows in splits}
        return head_classes(train, self.reads, label_names(train, self.independent, splits), numbers)

    def teacher_prediction(self) -> EvalPrediction | None:
        """The outputs in the validation data's columns, in the order of `eval_dataset`; None where it has none."""
        columns = teacher_columns(self.validation)
        if self.validation is None or self.eval_dataset is None or not columns:
            return None
        outputs = np.asarray(self.validation[columns[0]][:], dtype=np.float64)
        return EvalPrediction(outputs[self.order], np.asarray(self.eval_dataset["labels"][:]))

    def _labelled(
        self, rows: Rows | None, labels: Labels, split: int, count: int | None, teacher_alone: bool = False
    ) -> Dataset | None:
        """The first rows of a split that have a label, or the first of all rows where none has one.

        Args:
            teacher_alone: where some rows have no label, keep all rows and drop the labels.
        """
        if rows is None:
            return None
        values, total = labels.splits[split], len(rows.texts[0])
        notes = []
        filled = [i for i in range(total) if not self.is_empty(rows, i)]
        if not filled:
            raise UserError(f"'{rows.source}' holds no words: expected some in each of its rows")
        if len(filled) < total:
            notes.append(f"{total - len(filled):,} without words left out")
        used = self.first(rows, filled, count) if teacher_alone else filled
        if unlabelled := 0 if values is None else sum(values[i] is None for i in used):
            action = "kept, all learn from the teacher alone" if teacher_alone else "left out"
            notes.append(f"{unlabelled:,} without a label {action}")
            values = None if teacher_alone else values
        notes += labels.notes[split]
        if rows.unused:
            notes.append(rows.unused)
        columns = columns_of(rows, self.reads)
        if rows.outputs and not columns:
            notes.append(f"not read: {', '.join(rows.outputs)}")
        labelled = [i for i in filled if values is None or values[i] is not None]
        if split == 1:
            scored = self.scored(rows, values, labelled)
            if len(scored) < len(labelled):
                notes.append(f"{len(labelled) - len(scored):,} that repeat another left out")
            labelled = scored
        indices = self.first(rows, labelled, count)
        if count is not None:
            notes.append(f"the first {len(indices):,} used")
        outputs = read_outputs(rows, columns, self.class_names, self.independent)  # of all rows: messages number them
        notes += [*(f"teacher's outputs from {column}" for column in columns), *outputs.notes]
        source = f"{rows.source}, {rows.split}" if rows.split else rows.source
        summary = f"{source}: {total:,} rows, {self.name}, {self.summarize_labels(rows, values)}"
        self.descriptions.append("; ".join([summary, *notes]))
        data = self.to_dataset(rows._replace(labels=values).select(indices))
        if not outputs.values:
            return data
        return data.add_column(self.output_name, [row for array in outputs.values for row in array[indices]])

    def is_empty(self, rows: Rows, row: int) -> bool:
        """Whether a row holds nothing to read, and is left out."""
        return False

    def first(self, rows: Rows, indices: list[int], count: int | None) -> list[int]:
        """The first ``count`` of the rows at some indices; all of them without a count."""
        return indices[:count]

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """The labels of a split, in words."""
        return "no labels" if values is None else f"{len(self.class_names)} classes: {first_few(self.class_names)}"

    def checked(self, rows: Rows) -> Rows:
        """The rows as they are tokenised; raises :class:`UserError` for one that cannot be."""
        for texts in rows.texts:
            check_texts(texts, rows.source)
        return rows

    def to_dataset(self, rows: Rows) -> Dataset:
        """The columns text, text_pair of pairs, and labels where there are any, as ``tokenise`` needs them.

        Args:
            rows: with labels as the model takes them.
        """
        columns: dict[str, Any] = dict(zip(("text", "text_pair"), rows.texts, strict=False))
        return Dataset.from_dict(columns if rows.labels is None else {**columns, "labels": rows.labels})

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

    def in_file_order(self, values: np.ndarray) -> np.ndarray:
        """Values of the examples of `eval_dataset`, in the order of the validation file, whatever the tokenizer."""
        assert self.eval_dataset is not None  # which sets the order
        ordered = np.empty_like(values)
        ordered[self.order] = values
        return ordered

    def _features(self, data: Dataset, teacher_tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
        tokenizers, options = (self.tokenizer, teacher_tokenizer), {"max_length": self.max_length, **self.token_options}
        return cached_features(data, self.tokenise, tokenizers, options, self.num_proc, "Tokenising texts")

    def scoring(self) -> list[Any]:
        """What decides the scores of given outputs: the rows and the classes."""
        rows = None if self.validation is None else data_digest(without_teacher(self.validation))
        return [SCORES_VERSION, rows, *self.class_names]

    def describe(self) -> list[str]:
        """A line for each split: its rows, its classes, and what was left out."""
        return self.descriptions
