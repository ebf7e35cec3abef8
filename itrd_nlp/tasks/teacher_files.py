"""A teacher's outputs in the columns of a file: logits, probabilities, scores or embeddings, one for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from itrd_nlp.distillation.teacher_columns import EMBEDDING, LOGITS
from itrd_nlp.models.classes import Places, class_names, listed
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.teacher_cells import PROBS, Probabilities, is_missing, list_in, mapping_in, numbers_in, wrong
from itrd_nlp.utils.errors import UserError, nearest

SCORE, EMBEDDING_PAIR = "teacher_score", "teacher_embedding_pair"
CLASSES = "teacher_classes"
LEAST = 1e-12  # of a probability, whose logarithm is then finite


class Outputs(NamedTuple):
    """What a file says of its teacher."""

    values: list[np.ndarray]  # (rows, classes) logits; or (rows, d) embeddings, one array for each column of texts
    notes: list[str]  # what was done to the cells, in words


def columns_of(rows: Rows | None, accepted: Sequence[str]) -> list[str]:
    """The columns of a teacher's outputs that a task reads of a file; raises :class:`UserError` for two kinds."""
    names = [name for name in accepted if rows is not None and name in rows.outputs]
    if {LOGITS, PROBS} <= {*names}:
        raise UserError(
            f"'{rows.source if rows else ''}' has {LOGITS} and {PROBS}: expected one of them; leave one out"
        )
    return names


def check_columns(rows: Rows, accepted: Sequence[str]) -> None:
    """Raise :class:`UserError` where a file has no teacher's outputs that a task reads."""
    if not columns_of(rows, accepted):
        typos = [hint for name in rows.outputs if (hint := nearest(name, accepted))]
        raise UserError(
            f"no teacher, and '{rows.source}' has no column {' or '.join(accepted)}: expected --teacher FOLDER, or its "
            f"outputs in the training file{''.join(typos[:1])}"
        )


def head_classes(rows: Rows | None, accepted: Sequence[str], labels: Iterable[str]) -> list[str]:
    """The classes that a training file names for its teacher, in the order of its outputs; none where it names none.

    ``teacher_classes`` in the first row names them; else the keys of ``{class: probability}`` do, with the classes of
    the labels where these name others, in the usual order.

    Args:
        labels: the names of classes in the training data's labels.

    Raises:
        UserError: a list of classes that cannot be read, or outputs in an order that nothing names.
    """
    columns = columns_of(rows, accepted)
    if rows is None or not columns:
        return []
    if names := _listed_classes(rows):
        return names
    named = {*labels}
    if rows.declared:
        return []
    keys: set[str] = set()
    if columns[0] == PROBS:
        cells = (mapping_in(cell) for cell in rows.outputs[PROBS])
        keys = {str(name).strip() for cell in cells for name in cell or ()}
    if keys:
        places = Places(sorted(keys), numbered=True)
        others = {name for name in named if places[name] is None}
        # a name in another case is the same class
        return class_names({name.lower(): name for name in [*sorted(keys), *sorted(others)]}.values(), [])
    if not named:
        raise UserError(
            f"'{rows.source}' has no labels that name the classes of {columns[0]}: expected a list of them as "
            f"{CLASSES} in its first row"
        )
    return []


def read_logits(rows: Rows, accepted: Sequence[str], classes: Sequence[str], independent: bool) -> Outputs:
    """Read (rows, classes) logits, or probabilities as logits.

    The logarithm of a softmax is its logits up to a constant, which a softmax at any temperature does not see; of
    independent classes, the logit is ``log p - log (1 - p)``.

    Args:
        classes: in the order of the student's logits; a file's own ``teacher_classes`` may have another.
        independent: whether several classes may hold at once.

    Raises:
        UserError: a row whose outputs are missing, non-finite or of another length, or are no probabilities.
    """
    (column,) = columns_of(rows, accepted)
    places = Places(classes, numbered=True)
    names = _listed_classes(rows) or list(classes)
    order = [places[name] for name in names]
    positions = np.array([len(classes) if i is None else i for i in order])
    if sorted(positions) != [*range(len(classes))]:
        raise UserError(
            f"'{rows.source}' has the {CLASSES} {listed(names)}: expected each class once: {listed(classes)}"
        )
    if column == LOGITS:
        values = _array(rows, LOGITS, lambda i, cell: numbers_in(rows, LOGITS, i, cell, len(classes), listed(names)))
        return Outputs([values[:, np.argsort(positions)]], [])
    reader = Probabilities(rows, names, independent)
    p = _array(rows, PROBS, reader.read)[:, np.argsort(positions)]
    notes = reader.notes()
    if clipped := int((p < LEAST).sum() + (independent and (p > 1 - LEAST).sum())):
        bounds = f"{LEAST:g} and 1 - {LEAST:g}" if independent else f"{LEAST:g}"
        notes.append(f"{clipped:,} probabilities clipped at {bounds}, so that logits are finite")
    if independent:
        p = p.clip(LEAST, 1 - LEAST)
        return Outputs([np.log(p) - np.log1p(-p)], notes)
    return Outputs([np.log(p.clip(LEAST))], notes)


def read_scores(rows: Rows) -> Outputs:
    """Read (rows, 1) scores; raises :class:`UserError` for a row without a finite number."""
    return Outputs([_array(rows, SCORE, lambda i, cell: numbers_in(rows, SCORE, i, cell, 1, "one number"))], [])


def read_embeddings(rows: Rows) -> Outputs:
    """Read (rows, d) embeddings of each column of texts.

    Raises:
        UserError: a row without a list of finite numbers, lists of different lengths, or pairs of texts without the
            second texts' embeddings.
    """
    columns = [EMBEDDING, EMBEDDING_PAIR][: len(rows.texts)]
    if missing := [name for name in columns if name not in rows.outputs]:
        raise UserError(
            f"'{rows.source}' has pairs of texts, and no column {missing[0]}: expected the embeddings of the first "
            f"texts as {EMBEDDING}, of the second ones as {EMBEDDING_PAIR}"
        )
    width = len(list_in(rows, EMBEDDING, 0, rows.outputs[EMBEDDING][0]))
    of_first = f"as many as in row 0 of {EMBEDDING}"

    def read(column: str) -> np.ndarray:
        return _array(rows, column, lambda i, cell: numbers_in(rows, column, i, cell, width, of_first))

    return Outputs([read(column) for column in columns], [])


def _array(rows: Rows, column: str, read: Callable[[int, Any], list[float]]) -> np.ndarray:
    return np.array([read(i, cell) for i, cell in enumerate(rows.outputs[column])], dtype=np.float64)


def _listed_classes(rows: Rows) -> list[str]:
    """The ``teacher_classes`` of a file's first row; the other rows repeat them, or are empty."""
    cells = rows.outputs.get(CLASSES) or [None]
    if is_missing(cells[0]):
        return []
    lists = {0: [str(name).strip() for name in list_in(rows, CLASSES, 0, cells[0])]}
    for i, cell in enumerate(cells):
        if not is_missing(cell) and cell != cells[0]:
            raise wrong(rows, CLASSES, i, cell, "the list of the first row, or an empty cell")
    if len({*lists[0]}) < max(2, len(lists[0])):
        raise wrong(rows, CLASSES, 0, cells[0], "two or more names, each once")
    return lists[0]
