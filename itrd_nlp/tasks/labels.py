"""From label columns to classes, scores and tags: which classes there are, and what each row says."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from itrd_nlp.models.classes import UNNAMED, ClassIndices, class_names, first_few
from itrd_nlp.tasks.cells import NUMBER, UNLABELLED, class_in, classes_in, mark_in, score_in, tags_in
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)

MISSING = {"nan", "na", "n/a", "none", "null", "<na>", "?"}  # names that may have been meant to say "no label"
DECIMAL = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?")
VECTORS = "vectors"
Splits = Sequence[Rows | None]  # for training, for validation


class Labels(NamedTuple):
    """The labels of both splits.

    Attributes:
        classes: in the order of the logits.
        splits: for each split a label for each row, None where the row has none; or None if no row has one.
        notes: for each split what the classes do not say, in words.
    """

    classes: list[str]
    splits: list[list[Any] | None]
    notes: list[list[str]]


def read_classes(splits: Splits, head_classes: Sequence[str]) -> Labels:
    """Read one class per row.

    Args:
        splits: for training and validation.
        head_classes: the classes of a teacher that has the head, in its order.

    Raises:
        UserError: several classes in a row, or others than the teacher's or the training data's.
    """
    names = [_read(rows, class_in) for rows in splits]
    classes = _classes(splits, filter(None, names[0]), head_classes)
    return _labels(splits, names, classes, lambda name, row, source: _class_index(classes, name, row, source))


def read_class_sets(splits: Splits, head_classes: Sequence[str]) -> Labels:
    """Read any number of classes per row: names, numbers of classes, or a 0 or 1 for each class.

    Lists of numbers are vectors of 0 and 1 if no schema names the classes, and all rows have as many of them, two or
    more: as numbers of classes they would name the same two in every row.

    Returns:
        1.0 or 0.0 for each class of each row.

    Raises:
        UserError: as :func:`read_classes`; numbers that are neither of classes nor vectors, or vectors of another
            length than there are classes.
    """
    names = [_read_sets(rows, splits) for rows in splits]
    numeric = [_is_numeric(rows, column) for rows, column in zip(splits, names, strict=True)]
    length = _vector_length(splits, names, numeric)
    vectors = [length is not None and is_numeric for is_numeric in numeric]
    train = [name for row in names[0] for name in row or ()]
    if vectors[0]:  # nothing names the classes but a teacher or the other split's schema
        train = [] if head_classes or _declared(splits) else [str(i) for i in range(length or 0)]
    classes = _classes(splits, train, head_classes)
    if length is not None and (length != len(classes.names) or not (classes.numbered or vectors[0])):
        sources = "' or '".join(rows.source for rows in splits if rows is not None)
        raise UserError(
            f"'{sources}' has vectors of {length} numbers 0 and 1, but the classes are {len(classes.names)}: "
            f"{first_few(classes.names)}; expected a number for each, in the order of a teacher or a schema, or names"
        )
    sets = [
        [row and [classes.names[k] for k, bit in enumerate(row) if bit == "1"] for row in column]
        if is_vector
        else column
        for column, is_vector in zip(names, vectors, strict=True)
    ]
    none = [0.0] * len(classes.names)  # of thousands of classes, one number for all is what fits into memory

    def encode(row_names: list[str], row: int, source: str) -> list[float]:
        vector = none.copy()
        for name in row_names:
            index = _class_index(classes, name, row, source)
            if index is not None:
                vector[index] = 1.0
        return vector

    labels = _labels(splits, sets, classes, encode)
    notes = [["a 0 or 1 for each class, in this order"] if is_vector else [] for is_vector in vectors]
    return labels._replace(notes=[of_vectors + more for of_vectors, more in zip(notes, labels.notes, strict=True)])


def read_scores(splits: Splits) -> list[list[float | None] | None]:
    """Read a number per row, None where it has none; raises :class:`UserError` for what is not a finite number."""
    return [_unless_empty(_read(rows, score_in)) for rows in splits]


def label_names(rows: Rows | None, several: bool, splits: Splits) -> set[str]:
    """The names of classes in the labels of one of the splits, ``several`` to a row or one; none of vectors."""
    if not several:
        return {name for name in _read(rows, class_in) if name and name not in UNLABELLED}
    names = [_read_sets(rows, splits)]
    if _is_numeric(rows, names[0]) and _vector_length([rows], names, [True]):
        return set()
    return {name for row in names[0] for name in row or ()}


def numbers_of(rows: Rows | None, several: bool, splits: Splits) -> set[str]:
    """The numbers that stand for classes in the labels of one of the splits, ``VECTORS`` of 0 and 1; none of names."""
    names = _read_sets(rows, splits) if several else _read(rows, class_in)
    columns = [[name for name in _names_in(value) if name not in UNLABELLED] for value in names]
    if not _is_numeric(rows, columns):
        return set()
    is_vector = several and _vector_length([rows], [columns], [True]) is not None
    return {VECTORS} if is_vector else {name for column in columns for name in column}


def read_tags(splits: Splits, head_classes: Sequence[str]) -> Labels:
    """Read a tag for each word of a row.

    Returns:
        The number of each word's tag; None of a row without tags.

    Raises:
        UserError: as :func:`read_classes`; numbers that nothing names.
    """
    rows_of_tags = [_read(rows, tags_in) for rows in splits]
    is_named = any(not UNNAMED.fullmatch(name) for name in head_classes)
    for rows, all_tags in zip(splits, rows_of_tags, strict=True):
        numbers = {tag for tags in all_tags for tag in tags or ()}
        if rows is not None and numbers and all(map(NUMBER.fullmatch, numbers)) and not is_named:
            raise UserError(
                f"'{rows.source}' has numbers as tags ({first_few(sorted(numbers, key=int))}), and nothing names them: "
                "expected names such as B-PER; a data set or a parquet file whose schema names them; or a teacher "
                "whose head does"
            )
    classes = _classes(splits, [tag for tags in rows_of_tags[0] for tag in tags or ()], head_classes)
    return _labels(
        splits, rows_of_tags, classes, lambda tags, row, source: [classes.of(tag, row, source) for tag in tags]
    )


def _read(rows: Rows | None, read: Callable[[Rows, int, Any], Any]) -> list[Any]:
    """The label of each row as ``read`` finds it in its cell; nothing for a split without labels."""
    return [] if rows is None else [read(rows, i, cell) for i, cell in enumerate(rows.labels or [])]


def _read_sets(rows: Rows | None, splits: Splits) -> list[list[str] | None]:
    """The classes of each row of a split, in texts separated alike in all splits."""
    sources = "', '".join(split.source for split in splits if split is not None)
    mark = mark_in((cell for split in splits if split is not None for cell in split.labels or ()), sources)
    return _read(rows, partial(classes_in, mark=mark))


def _classes(splits: Splits, train: Iterable[str], head_classes: Sequence[str]) -> ClassIndices:
    """The classes: the teacher's, else those of a schema, else those that occur in the training data."""
    counts, declared = Counter(train), _declared(splits)
    if head_classes:
        return ClassIndices(class_names({*counts} - UNLABELLED, head_classes), numbered=True)
    if len(declared) > 1:
        return ClassIndices(declared, numbered=True)
    for name in sorted(name for name in counts if name in UNLABELLED or name.lower() in MISSING):
        logger.warning(
            "%d rows have the label %r: treated as a class; leave a cell empty for no label", counts[name], name
        )
    alike = [name for name, count in Counter(name.lower() for name in counts).items() if count > 1]
    if alike:
        logger.warning("classes that differ only in case, such as %r, are treated as different classes", alike[0])
    return ClassIndices(class_names(counts, []), numbered=False)


def _class_index(classes: ClassIndices, name: str, row: int, source: str) -> int | None:
    """The index of a class; None for a -1 where a teacher or a schema says which classes there are."""
    if classes.numbered and name in UNLABELLED and classes[name] is None:
        return None
    return classes.of(name, row, source)


def _labels(
    splits: Splits, values: Sequence[list[Any]], classes: ClassIndices, encode: Callable[[Any, int, str], Any]
) -> Labels:
    """Encode what each row says, by ``encode(value, row, source)``."""
    encoded, notes = [], []
    for rows, column in zip(splits, values, strict=True):
        source = "" if rows is None else rows.source
        labels = [None if value is None else encode(value, i, source) for i, value in enumerate(column)]
        encoded.append(_unless_empty(labels))
        notes.append(classes.notes(name for value in column for name in _names_in(value)))
    return Labels(classes.names, encoded, notes)


def _names_in(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or []


def _unless_empty(labels: list[Any]) -> list[Any] | None:
    return labels if any(label is not None for label in labels) else None


def _declared(splits: Splits) -> list[str]:
    """The classes of the training data's schema, else of the validation data's."""
    return next((list(rows.declared) for rows in splits if rows is not None and rows.declared), [])


def _is_numeric(rows: Rows | None, column: Sequence[list[str] | None]) -> bool:
    """Whether a split has numbers alone, and no schema names them."""
    names = [name for row in column for name in row or ()]
    return rows is not None and not rows.declared and bool(names) and all(map(DECIMAL.fullmatch, names))


def _vector_length(splits: Splits, names: Sequence[Sequence[list[str] | None]], numeric: Sequence[bool]) -> int | None:
    """How many numbers 0 and 1 each row of the numeric splits has; None where they are numbers of classes.

    Raises:
        UserError: numbers that are neither.
    """
    columns = [(rows, column) for rows, column, is_numeric in zip(splits, names, numeric, strict=True) if is_numeric]
    values = [row for _, column in columns for row in column if row]
    lengths = {len(row) for row in values}
    if len(lengths) == 1 and min(lengths) > 1 and {name for row in values for name in row} <= {"0", "1"}:
        return lengths.pop()
    for rows, column in columns:
        for i, row in enumerate(column):
            if row and (len({*row}) < len(row) or not all(map(NUMBER.fullmatch, row))):
                raise UserError(
                    f"row {i} of '{rows.source if rows else ''}' has the labels {', '.join(row):.60}: expected names, "
                    "numbers of classes, each once, or a 0 or 1 for each class, equally many in all rows"
                )
    return None
