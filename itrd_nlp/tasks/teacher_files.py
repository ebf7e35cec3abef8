"""A teacher's outputs in the columns of a file: logits, probabilities, scores or embeddings, one for each text."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from itrd_nlp.distillation.teacher_columns import EMBEDDING, LOGITS
from itrd_nlp.models.classes import UNNAMED, ClassIndices, class_names, first_few
from itrd_nlp.tasks.cells import is_bracketed, is_missing, number_in, parse_list, without_numpy
from itrd_nlp.tasks.labels import VECTORS
from itrd_nlp.tasks.list_columns import array_of
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.utils.errors import UserError, nearest

PROBS, CLASSES = "teacher_probs", "teacher_classes"
SCORE, EMBEDDING_PAIR = "teacher_score", "teacher_embedding_pair"
LEAST = 1e-12  # of a probability, whose logarithm is then finite
TOLERANCE = 0.01  # of a sum of probabilities, which may be rounded
LARGEST = float(np.finfo(np.float32).max)  # as which outputs are kept


class Outputs(NamedTuple):
    """What a file says of its teacher."""

    values: list[np.ndarray]  # fp32: (rows, classes) logits; or (rows, d) embeddings, one for each column of texts
    notes: list[str]  # what was done to the cells, in words


def columns_of(rows: Rows | None, accepted: Sequence[str]) -> list[str]:
    """The columns of a teacher's outputs that a task reads of a file; raises :class:`UserError` for two kinds."""
    if rows is None:
        return []
    names = [name for name in accepted if name in rows.outputs]
    if {LOGITS, PROBS} <= {*names}:
        raise UserError(f"'{rows.source}' has {LOGITS} and {PROBS}: expected one of them; leave one out")
    return names


def check_columns(rows: Rows, accepted: Sequence[str]) -> None:
    """Raise :class:`UserError` where a file has no teacher's outputs that a task reads."""
    if not columns_of(rows, accepted):
        typos = [hint for name in rows.outputs if (hint := nearest(name, accepted))]
        raise UserError(
            f"no teacher, and '{rows.source}' has no column {' or '.join(accepted)}: expected --teacher FOLDER, or its "
            f"outputs in the training file{''.join(typos[:1])}{f' ({rows.unused})' if rows.unused else ''}"
        )


def head_classes(
    rows: Rows | None, accepted: Sequence[str], labels: Iterable[str], numbers: Mapping[str, set[str]] | None = None
) -> list[str]:
    """The classes that a training file names for its teacher, in the order of its outputs; none where it names none.

    ``teacher_classes`` in the first row names them; else the keys of ``{class: probability}`` do, with the classes of
    the labels where these name others, in the usual order.

    Args:
        labels: the names of classes in the training data's labels.
        numbers: source -> those that stand for classes in its labels; see :func:`itrd_nlp.tasks.labels.numbers_of`.

    Raises:
        UserError: a list of classes that cannot be read, outputs in an order that nothing names, or labels of other
            classes than the teacher's.
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
        in_order = all(map(UNNAMED.fullmatch, keys)) or keys == {"False", "True"}  # LABEL_0, LABEL_1: as numbers say
        ordered = sorted(keys, key=lambda key: (len(key), key)) if in_order else sorted(keys)
        indices = ClassIndices(ordered, numbered=in_order)
        others = {name for name in named if indices[name] is None}
        by_number = [source for source, names in (numbers or {}).items() if any(indices[n] is None for n in names)]
        if by_number or (named and others == named):
            source = by_number[0] if by_number else rows.source
            raise UserError(
                f"'{rows.source}' names the classes {first_few(sorted(keys))} in {PROBS}, the labels of '{source}' are "
                f"{'numbers' if by_number else first_few(sorted(named))}: expected the same names, or the classes in "
                f"the order of their numbers as {CLASSES} in the first row"
            )
        if in_order and not others:
            return ordered
        # a name in another case is the same class
        return class_names({name.lower(): name for name in [*sorted(keys), *sorted(others)]}.values(), [])
    if not named and (numbers or {}).get(rows.source) != {VECTORS}:  # in one order with lists
        raise UserError(
            f"'{rows.source}' has no labels that name the classes of {columns[0]}: expected a list of them as "
            f"{CLASSES} in its first row"
        )
    return []


def read_outputs(rows: Rows, columns: Sequence[str], classes: Sequence[str], independent: bool) -> Outputs:
    """Read a teacher's outputs: (rows, classes) logits, (rows, 1) scores, or (rows, d) embeddings of each text.

    Args:
        columns: of :func:`columns_of`; none: there are no outputs.
        classes, independent: as of :func:`_read_logits`.

    Raises:
        UserError: a row whose outputs are missing, non-finite or of another length, or are not probabilities.
    """
    if not columns:
        return Outputs([], [])
    if columns[0] == SCORE:
        return Outputs([_numbers(rows, SCORE, 1, "one number")], [])
    if columns[0] == EMBEDDING:
        return Outputs(_embeddings(rows), [])
    return _read_logits(rows, columns[0], classes, independent)


def _read_logits(rows: Rows, column: str, classes: Sequence[str], independent: bool) -> Outputs:
    """Read logits, or probabilities as logits.

    The logarithm of a softmax is its logits up to a constant, which a softmax at any temperature does not see; of
    independent classes, the logit is ``log p - log (1 - p)``.

    Args:
        classes: in the order of the student's logits; a file's own ``teacher_classes`` may have another.
        independent: whether several classes may hold at once.
    """
    names = _listed_classes(rows) or list(classes)
    indices = ClassIndices(classes, numbered=True)
    positions = [indices[name] for name in names]
    if {*positions} != {*range(len(classes))} or len(names) != len(classes):
        raise UserError(
            f"'{rows.source}' has the {CLASSES} {first_few(names)}: expected each class once: {first_few(classes)}"
        )
    order = np.array([positions.index(i) for i in range(len(classes))])
    if column == LOGITS:
        return Outputs([_numbers(rows, LOGITS, len(names), first_few(names))[:, order]], [])
    p, notes = _probabilities(rows, names, independent)
    p = p[:, order]
    if clipped := int((p < LEAST).sum() + (independent and (p > 1 - LEAST).sum())):
        bounds = f"{LEAST:g} and 1 - {LEAST:g}" if independent else f"{LEAST:g}"
        notes.append(f"{clipped:,} probabilities clipped at {bounds}, so that logits are finite")
    if independent:
        p = p.clip(LEAST, 1 - LEAST)
        return Outputs([(np.log(p) - np.log1p(-p)).astype(np.float32)], notes)
    return Outputs([np.log(p.clip(LEAST)).astype(np.float32)], notes)


def _probabilities(rows: Rows, names: Sequence[str], independent: bool) -> tuple[np.ndarray, list[str]]:
    """(rows, classes) probabilities in the order of ``names``; and what was done to rows that name only some."""
    indices = ClassIndices(names, numbered=True)
    cells, partial = rows.outputs[PROBS], 0
    table = np.empty((len(cells), len(names)))
    for row, cell in enumerate(cells):
        named = mapping_in(cell)
        if named is None:
            p = numbers_in(rows, PROBS, row, cell, len(names), first_few(names))
        else:
            of_class = _by_class(rows, row, cell, named, indices)
            others = len(names) - len(of_class)
            partial += others > 0
            rest = 0.0 if independent or not others else max(0.0, 1 - sum(of_class.values())) / others
            p = [of_class.get(i, rest) for i in range(len(names))]
        if min(p) < 0 or max(p) > 1 + TOLERANCE:
            raise cell_error(rows, PROBS, row, cell, "probabilities from 0 to 1")
        if not independent and abs(sum(p) - 1) > TOLERANCE:
            raise cell_error(rows, PROBS, row, cell, f"a sum of 1 (within {TOLERANCE}), found {sum(p):.4g}")
        table[row] = p
    doing = "the others are 0" if independent else "the rest spread evenly over the others"
    notes = [f"{PROBS} name some classes in {partial:,} rows, {doing}"] if partial else []
    return table, notes


def _by_class(rows: Rows, row: int, cell: Any, named: Mapping[str, Any], indices: ClassIndices) -> dict[int, float]:
    """The probabilities of a mapping by the index of their class, in the order of these."""
    p: dict[int, float] = {}
    for name, value in named.items():
        index = indices[name.strip()]
        if index is None or index in p:
            hint = nearest(name, indices.names) if index is None else ""
            raise cell_error(rows, PROBS, row, cell, f"each class once: {first_few(indices.names)}{hint}")
        p[index] = number_in(value)
    if not p or not all(map(math.isfinite, p.values())):
        raise cell_error(rows, PROBS, row, cell, 'finite numbers, such as {"good": 0.9}')
    return dict(sorted(p.items()))


def _embeddings(rows: Rows) -> list[np.ndarray]:
    """(rows, d) embeddings of the first texts, and of the second ones of pairs."""
    columns = [EMBEDDING, EMBEDDING_PAIR][: len(rows.texts)]
    if missing := [name for name in columns if name not in rows.outputs]:
        raise UserError(
            f"'{rows.source}' has pairs of texts, and no column {missing[0]}: expected the embeddings of the first "
            f"texts as {EMBEDDING}, of the second ones as {EMBEDDING_PAIR}"
        )
    width = len(list_in(rows, EMBEDDING, 0, rows.outputs[EMBEDDING][0]))
    of_first = f"as many as in row 0 of {EMBEDDING}"
    return [_numbers(rows, column, width, of_first) for column in columns]


def _numbers(rows: Rows, column: str, count: int, what: str) -> np.ndarray:
    """(rows, count) finite numbers of a column, in fp32."""
    cells = rows.outputs[column]
    table = array_of(cells, count)
    if table is None:  # texts, or a row that is named
        table = np.empty((len(cells), count), np.float32)
        for i, cell in enumerate(cells):
            table[i] = numbers_in(rows, column, i, cell, count, what)
    return table


def _listed_classes(rows: Rows) -> list[str]:
    """The ``teacher_classes`` of a file's first row; the other rows repeat them, or are empty."""
    cells = rows.outputs.get(CLASSES, [None])
    first = cells[0]
    if is_missing(first):
        return []
    names = [str(name).strip() for name in list_in(rows, CLASSES, 0, first)]
    for i, cell in enumerate(cells):
        if not is_missing(cell) and cell != first:
            raise cell_error(rows, CLASSES, i, cell, "the list of the first row, or an empty cell")
    if len({*names}) < max(2, len(names)):
        raise cell_error(rows, CLASSES, 0, first, "two or more names, each once")
    return names


def cell_error(rows: Rows, column: str, row: int, cell: Any, expected: str) -> UserError:
    value = "nothing" if is_missing(cell) else f"{cell!r:.60}"
    return UserError(f"row {row} of '{rows.source}' has {value} as {column}: expected {expected}")


def list_in(rows: Rows, column: str, row: int, cell: Any) -> list[Any]:
    """The items of a list, or of a list as text."""
    if isinstance(cell, str) and is_bracketed(cell):
        with contextlib.suppress(ValueError, SyntaxError):
            cell = parse_list(cell)
    if not isinstance(cell, list | tuple | np.ndarray) or not len(cell):
        raise cell_error(rows, column, row, cell, "a list such as [0.5, -1.2], in CSV as JSON")
    return list(cell)


def numbers_in(rows: Rows, column: str, row: int, cell: Any, count: int, what: str) -> list[float]:
    """``count`` finite numbers of a cell; a number alone is a list of one."""
    single = count == 1 and not (isinstance(cell, list | tuple) or (isinstance(cell, str) and is_bracketed(cell)))
    items = [cell] if single else list_in(rows, column, row, cell)
    if len(items) != count:
        raise cell_error(rows, column, row, cell, f"{count} numbers ({what}), found {len(items)}")
    numbers = [number_in(item) for item in items]
    if not all(abs(number) <= LARGEST for number in numbers):
        raise cell_error(rows, column, row, cell, f"finite numbers ({what})")
    return numbers


def mapping_in(cell: Any) -> dict[str, Any] | None:
    """A cell that maps classes to probabilities, without the empty ones that parquet adds; None for a list."""
    if isinstance(cell, str) and cell.strip().startswith("{"):
        for parse in (json.loads, lambda text: ast.literal_eval(without_numpy(text))):  # as Python prints it
            with contextlib.suppress(ValueError, SyntaxError):
                cell = parse(cell)
                break
    return {str(k): v for k, v in cell.items() if v is not None} if isinstance(cell, Mapping) else None
