"""Rows of text with labels, from files or the Hub: the data of every text task but question answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel

from itrd_nlp.tasks.tabular import Table, read_dataset, read_table, split_of
from itrd_nlp.utils.errors import UserError, nearest

# how well-known data sets name their texts; the first whose columns are all there is taken
LAYOUTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
)


class Rows(NamedTuple):
    """Texts, or pairs of texts, and what is known of each."""

    source: str  # for messages
    texts: list[list[Any]]  # one list, or two of equal length
    labels: list[Any] | None  # as they were found; None: there are none
    declared: list[str] | None = None  # the classes that a schema names; their labels are places among them
    split: str = ""  # of a data set
    other: str = ""  # which columns of well-known names are not read, in words

    def chosen(self, places: Sequence[int]) -> Rows:
        """Those at some places."""
        labels = None if self.labels is None else [self.labels[i] for i in places]
        return self._replace(texts=[[some[i] for i in places] for some in self.texts], labels=labels)


class Columns(NamedTuple):
    """Which columns hold what; None: a well-known name."""

    layouts: Sequence[tuple[str, ...]] = LAYOUTS
    labels: tuple[str, ...] = ("label", "labels")
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


CLASSES = Columns()
SCORES = Columns(labels=("score", "label", "similarity_score"))
WORDS = Columns(layouts=(("tokens",), ("words",), ("text",)), labels=("ner_tags", "tags", "labels"))


def load_rows(
    dataset: str | None, config: str | None, train_file: str | None, validation_file: str | None, columns: Columns
) -> tuple[Rows | None, Rows | None]:
    """Rows for training and validation; None where there are none.

    Args:
        dataset: Hub id, or a folder that `datasets` reads.
        config: which of the data sets that it holds, such as ``sst2`` of ``nyu-mll/glue``.
        train_file: as :func:`itrd_nlp.tasks.tabular.read_table` takes it; in the place of the dataset's training split.
        validation_file: the same for validation.
        columns: where texts and labels stand. Labels may be missing unless their column is named: a text without its
            label serves to distil.

    Raises:
        UserError: nothing given, or what cannot be read.
    """
    if dataset is None and train_file is None and validation_file is None:
        raise UserError("no data given: pass a dataset of the Hub, or a train_file or validation_file")
    files = {"train": train_file, "validation": validation_file}
    splits: dict[str, Table] = {}
    if dataset is not None and None in files.values():
        splits = read_dataset(dataset, config, owner="nyu-mll")
        if not any(split_of(splits, serves) for serves in files):
            raise UserError(f"dataset '{dataset}' has the splits {sorted(splits)}: expected train or validation")
    tables = {serves: read_table(file, serves) if file else split_of(splits, serves) for serves, file in files.items()}
    train, validation = (None if table is None else _select(table, columns) for table in tables.values())
    return train, validation


def _select(table: Table, columns: Columns) -> Rows:
    """The texts and labels of a table."""
    source, names = table.source, list(table.columns)
    if columns.text:
        layouts: Sequence[tuple[str, ...]] = [tuple(filter(None, (columns.text, columns.text_pair)))]
    else:
        layouts = columns.layouts
    chosen = next((layout for layout in layouts if {*layout} <= {*names}), None)
    if chosen is None:
        wanted = ", or ".join(" and ".join(layout) for layout in layouts)
        advice = (
            nearest(columns.text, names) if columns.text else "; name yours with --text_column (--text_pair_column)"
        )
        raise UserError(f"'{source}' has the columns {', '.join(names)}: expected {wanted}{advice}")
    if columns.label is not None and columns.label not in names:
        raise UserError(
            f"'{source}' has the columns {', '.join(names)}: expected label_column {columns.label}"
            f"{nearest(columns.label, names)}"
        )
    named = [columns.label] if columns.label else columns.labels
    found = [name for name in named if name in names and name not in chosen]
    label = found[0] if found else None
    others = [*found[1:], *(name for layout in layouts if {*layout} <= {*names} - {*chosen} for name in layout)]
    other = f"not read: {', '.join(dict.fromkeys(others))}" if others else ""
    texts = [list(table.columns[name][:]) for name in chosen]
    labels = None if label is None else list(table.columns[label][:])
    if labels is not None and all(value is None or (isinstance(value, str) and not value) for value in labels):
        labels = None
    return Rows(source, texts, labels, _declared(table.features.get(str(label))), table.split, other)


def _declared(feature: Any) -> list[str] | None:
    """The names of a type of classes, or of lists of them; None of any other."""
    while not isinstance(feature, ClassLabel) and getattr(feature, "feature", None) is not None:
        feature = feature.feature  # of a list
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
