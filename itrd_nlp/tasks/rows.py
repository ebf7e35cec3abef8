"""Rows of text with labels, from files or the Hub: the data of every text task but question answering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel

from itrd_nlp.tasks.tabular import Table, load_tables
from itrd_nlp.utils.errors import UserError, nearest

# text columns of well-known data sets; the first layout whose columns are all there counts
LAYOUTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
)
# columns of data for reranking, see `itrd_nlp.tasks.reranking.rows`
QUERIES = ("query", "question", "anchor")
DOCUMENTS = ("document", "passage", "text", "answer")
POSITIVES = ("positive", "positives", "pos")


class Rows(NamedTuple):
    """Texts, or pairs of texts, and their labels."""

    source: str  # for messages
    texts: list[list[Any]]  # one list, or two of equal length
    labels: list[Any] | None  # as in the data; None: there are none
    declared: list[str] | None = None  # the classes that a schema names; labels are indices of them
    split: str = ""  # of a data set
    unused: str = ""  # columns of well-known names that are not read, in words
    # columns whose names begin with "teacher_", see `tasks.teacher_files`; of a dataset read when they are needed
    outputs: Mapping[str, Sequence[Any]] = {}

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at some indices, without outputs."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        texts = [[column[i] for i in indices] for column in self.texts]
        return self._replace(texts=texts, labels=labels, outputs={})


class Columns(NamedTuple):
    """Names of the columns of texts and labels; None: a well-known name."""

    layouts: Sequence[tuple[str, ...]] = LAYOUTS
    labels: tuple[str, ...] = ("label", "labels")
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    example: str = "nyu-mll/glue"  # a well-known data set with such columns, for messages
    select: Callable[[Table, Columns], Rows] | None = None  # reads the rows of a table; None: :func:`select_rows`


CLASSES = Columns()
SCORES = Columns(labels=("score", "label", "similarity_score", "labels"))
WORD_COLUMNS = Columns(layouts=(("tokens",), ("words",), ("text",)), labels=("ner_tags", "tags", "labels"))


def load_rows(
    dataset: str | None, config: str | None, train_file: str | None, validation_file: str | None, columns: Columns
) -> tuple[Rows | None, Rows | None]:
    """Load rows for training and validation; None where there are none.

    Args:
        dataset: Hub id, or a folder that `datasets` reads.
        config: which of the data sets that it holds, such as ``sst2`` of ``nyu-mll/glue``.
        train_file: see :func:`itrd_nlp.tasks.tabular.read_table`; replaces the training split of the dataset.
        validation_file: the same for validation.
        columns: the columns of texts and labels. Labels may be missing: a text without its label serves to distil. A
            column that is named must stand in one of the splits; the other one may lack it.

    Returns:
        Of ``itrd_nlp.tasks.reranking.rows.DOCUMENT_COLUMNS``, rows of a query and a document: of rows with
        positives and negatives, the positive documents have the label 1, the negative ones 0, and each document stands
        once for its query.

    Raises:
        UserError: no data given, data that cannot be read, or without such columns.
    """
    if columns.text_pair and not columns.text:
        raise UserError(f"text_pair_column {columns.text_pair!r} alone: expected --text_column too")
    tables = load_tables(dataset, config, train_file, validation_file, columns.example)
    select = columns.select or select_rows
    names = [() if table is None else table.columns for table in tables]
    train, validation = (
        None if table is None else select(table, _own_columns(table, columns, others))
        for table, others in zip(tables, reversed(names), strict=True)
    )
    return train, validation


def _own_columns(table: Table, columns: Columns, others: Collection[str]) -> Columns:
    """The columns of a split: of those that are named, it may lack what the other one has."""
    if columns.label in others and columns.label not in table.columns:
        columns = columns._replace(label=None, labels=())
    texts = {columns.text, columns.text_pair} - {None}
    if texts and texts <= {*others} and not texts <= {*table.columns}:
        columns = columns._replace(text=None, text_pair=None)
    return columns


def select_rows(table: Table, columns: Columns) -> Rows:
    """The texts and labels of a table; raises :class:`UserError` where it lacks their columns."""
    names = list(table.columns)
    layouts = columns.layouts
    if columns.text:
        layouts = [(columns.text, columns.text_pair) if columns.text_pair else (columns.text,)]
    present = [layout for layout in layouts if {*layout} <= {*names}]
    if not present:
        advice = "; name yours with --text_column (--text_pair_column)"
        if columns.text:
            advice = nearest(columns.text, names)
        elif {*names} & {*QUERIES} and {*names} & {*DOCUMENTS, *POSITIVES}:
            advice += "; queries and documents are for rerankers (--task reranking)"
        raise _missing(table, ", or ".join(" and ".join(layout) for layout in layouts) + advice)
    if columns.label is not None and columns.label not in names:
        raise _missing(table, f"label_column {columns.label}{nearest(columns.label, names)}")
    texts = present[0]
    candidates = [columns.label] if columns.label else columns.labels
    label_columns = [name for name in candidates if name in names and name not in texts]
    others = label_columns[1:] + [name for layout in present if not {*layout} & {*texts} for name in layout]
    labels = list(table.columns[label_columns[0]][:]) if label_columns else []
    is_empty = all(value is None or value == "" for value in labels)
    return Rows(
        source=table.source,
        texts=[list(table.columns[name][:]) for name in texts],
        labels=None if is_empty else labels,
        declared=_declared(table.features.get(label_columns[0])) if label_columns else None,
        split=table.split,
        unused=f"not read: {', '.join(dict.fromkeys(others))}" if others else "",
        outputs={name: table.columns[name] for name in names if name.startswith("teacher_")},
    )


def _missing(table: Table, expected: str) -> UserError:
    return UserError(f"'{table.source}' has the columns {', '.join(table.columns)}: expected {expected}")


def _declared(feature: Any) -> list[str] | None:
    """The classes that a column's type names, for single labels or lists of them."""
    while not isinstance(feature, ClassLabel) and getattr(feature, "feature", None) is not None:
        feature = feature.feature  # of a list
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
