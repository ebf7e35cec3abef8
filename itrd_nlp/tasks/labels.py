"""What a label column means: the one place that makes classes, scores and tags of what people write."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from itrd_nlp.models.classes import Places, class_names, listed
from itrd_nlp.tasks.cells import NUMBER, UNLABELLED, class_in, classes_in, name_of, score_in, tags_in
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)

MISSING = {"nan", "na", "n/a", "none", "null", "<na>", "?"}  # names of classes that may have been meant to say "none"
UNNAMED = re.compile(r"(LABEL_)?\d+")  # what a head's classes are called that nobody has named
Splits = Sequence[Rows | None]  # for training, for validation


class Labels(NamedTuple):
    """The labels of both splits.

    Attributes:
        classes: in the order of the logits.
        splits: for each split None, where it has no labels, or a label for each row, None where the row has none.
        notes: what was understood that the classes do not say, for each split.
    """

    classes: list[str]
    splits: list[list[Any] | None]
    notes: list[list[str]]


def read_classes(splits: Splits, known: Sequence[str]) -> Labels:
    """One class a row.

    Args:
        splits: for training and validation.
        known: the classes of a teacher that has the head, in its order.

    Raises:
        UserError: several classes in a row, or others than the teacher's or the training data's.
    """
    named = _each(splits, class_in)
    places = _places(splits, [name for name in named[0] if name], known)
    made, notes = [], []
    for rows, names in zip(splits, named, strict=True):
        made.append([_place(places, name, i, rows) for i, name in enumerate(names)])
        notes.append(places.notes())
    return Labels(places.names, _or_none(made), notes)


def read_class_sets(splits: Splits, known: Sequence[str]) -> Labels:
    """Any number of classes a row: names, numbers of classes that are declared, or a 0 or 1 for each class.

    Returns:
        1.0 or 0.0 for each class of each row.

    Raises:
        UserError: as :func:`read_classes`; numbers that are neither places of classes nor vectors of 0 and 1, or
            vectors of another length than there are classes.
    """
    cells = _each(splits, classes_in)
    length = _vector_length(splits, cells)
    vectors = [length is not None and _undeclared(rows) and _are_numbers(found) for rows, found in _both(splits, cells)]
    named = [
        [None if items is None or vector else [name_of(x, rows, i) for x in items] for i, items in enumerate(found)]
        for (rows, found), vector in zip(_both(splits, cells), vectors, strict=True)
    ]
    first = [name for names in named[0] for name in names or () if name]
    if vectors[0] and not known and not _declared(splits):
        first = [str(i) for i in range(length or 0)]
    places = _places(splits, first, known)
    if length is not None and (length != len(places.names) or not (places.numbered or vectors[0])):
        raise UserError(
            f"'{_sources(splits)}' has vectors of {length} numbers 0 and 1, but the classes are {len(places.names)}: "
            f"{listed(places.names)}; expected a number for each, in the order of a teacher or a schema, or names"
        )
    made, notes = [], []
    for (rows, found), names, vector in zip(_both(splits, cells), named, vectors, strict=True):
        rows_of: list[Any] = []
        for i, items in enumerate(found):
            if items is None or vector:
                rows_of.append(_vector(items, len(places.names)))
            else:
                chosen = {_place(places, name, i, rows) for name in names[i] or () if name}
                rows_of.append([float(k in chosen) for k in range(len(places.names))])
        made.append(rows_of)
        notes.append(["a 0 or 1 for each class, in this order"] * vector + places.notes())
    return Labels(places.names, _or_none(made), notes)


def read_scores(splits: Splits) -> list[list[float | None] | None]:
    """A number a row; None where it has none; raises :class:`UserError` for what is no finite number."""
    made = _each(splits, score_in)
    return _or_none(made)


def read_tags(splits: Splits, known: Sequence[str]) -> Labels:
    """A tag for each word of a row.

    Returns:
        The number of each word's tag; None of a row without tags.

    Raises:
        UserError: as :func:`read_classes`; numbers that nothing names.
    """
    named = _each(splits, tags_in)
    for rows, found in _both(splits, named):
        all_of = {tag for tags in found for tag in tags or ()}
        head = [name for name in known if not UNNAMED.fullmatch(name)]
        if all_of and all(map(NUMBER.fullmatch, all_of)) and not head:
            raise UserError(
                f"'{rows.source}' has numbers as tags ({listed(sorted(all_of, key=int))}), and nothing names them: "
                "expected names such as B-PER; a data set or a parquet file whose schema names them; or a teacher "
                "whose head does"
            )
    places = _places(splits, [tag for tags in named[0] for tag in tags or ()], known)
    made, notes = [], []
    for rows, found in _both(splits, named):
        made.append([tags and [places.of(tag, i, rows.source) for tag in tags] for i, tags in enumerate(found)])
        notes.append(places.notes())
    return Labels(places.names, _or_none(made), notes)


def _places(splits: Splits, train: Iterable[str], known: Sequence[str]) -> Places:
    """The classes: the teacher's, else those of a schema, else what the training data names."""
    found, declared = Counter(train), _declared(splits)
    if known:
        return Places(class_names({*found} - UNLABELLED, known), numbered=True)
    if len(declared) > 1:
        return Places(declared, numbered=True)
    for name in sorted(name for name in found if name in UNLABELLED or name.lower() in MISSING):
        logger.warning("%d rows have the label %r: taken for a class; leave it empty to say none", found[name], name)
    alike = [name for name, count in Counter(name.lower() for name in found).items() if count > 1]
    if alike:
        logger.warning("classes that differ in their case alone, such as %r, are taken for several", alike[0])
    return Places(class_names(found, []), numbered=False)


def _place(places: Places, name: str | None, row: int, rows: Rows | None) -> int | None:
    """The place of a class; None of no class, or of a -1 where something says which classes there are."""
    if name is None or (places.numbered and name in UNLABELLED and places[name] is None):
        return None
    assert rows is not None
    return places.of(name, row, rows.source)


def _each(splits: Splits, read: Callable[[Rows, int, Any], Any]) -> list[list[Any]]:
    """What ``read`` makes of each row's label; nothing of a split without."""
    return [
        [] if rows is None else [read(rows, i, cell) for i, cell in enumerate(rows.labels or [])] for rows in splits
    ]


def _both(splits: Splits, found: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(splits, found, strict=True))


def _or_none(made: Sequence[list[Any]]) -> list[list[Any] | None]:
    """The labels of each split; None of one in which no row has one."""
    return [labels if any(label is not None for label in labels) else None for labels in made]


def _declared(splits: Splits) -> list[str]:
    """The classes of the training data's schema, else of the validation data's."""
    return next((list(rows.declared) for rows in splits if rows is not None and rows.declared), [])


def _undeclared(rows: Rows | None) -> bool:
    return rows is not None and not rows.declared


def _sources(splits: Splits) -> str:
    return "' or '".join(rows.source for rows in splits if rows is not None)


def _are_numbers(cells: Sequence[list[Any] | None]) -> bool:
    """Whether all items are numbers, and there are some."""
    items = [item for cell in cells for item in cell or ()]
    return bool(items) and not any(isinstance(item, str) for item in items)


def _vector_length(splits: Splits, cells: Sequence[Sequence[list[Any] | None]]) -> int | None:
    """How long the vectors are, where lists of numbers are vectors of 0 and 1; None where they are numbers of classes.

    They are vectors if all rows have as many numbers, two or more, and none but 0 and 1: numbers of classes would
    name the same two in every row.
    """
    numbers = [found for rows, found in _both(splits, cells) if _undeclared(rows) and _are_numbers(found)]
    lengths = {len(cell) for found in numbers for cell in found if cell}
    values = {float(item) for found in numbers for cell in found for item in cell or ()}
    if len(lengths) == 1 and min(lengths) > 1 and values <= {0.0, 1.0}:
        return lengths.pop()
    for rows, found in _both(splits, cells):
        for i, cell in enumerate(found):
            given = [item for item in cell or () if not isinstance(item, str)]
            if len({*given}) < len(given) or any(not float(item).is_integer() for item in given):
                raise UserError(
                    f"row {i} of '{rows.source}' has the labels {cell!r:.60}: expected names, numbers of classes, each "
                    "once, or a 0 or 1 for each class, equally many in all rows"
                )
    return None


def _vector(items: list[Any] | None, count: int) -> list[float] | None:
    """A 0 or 1 for each class; an empty cell names none."""
    return None if items is None else [float(item) for item in items] or [0.0] * count
