"""Rows of queries and documents, in either of the layouts that people write, as pairs with a relevance."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from itrd_nlp.tasks.cells import is_bracketed, parse_list
from itrd_nlp.tasks.rows import DOCUMENTS, POSITIVES, QUERIES, Columns, Rows, select_rows
from itrd_nlp.tasks.tabular import Table
from itrd_nlp.utils.errors import UserError, nearest

NEGATIVE = re.compile(r"neg|negatives?|negative_?\d+")
SEVERAL = re.compile(r"positives|negatives|pos|neg")  # columns whose cells may hold a list as text
EXPECTED = "query, document and label; or query, positive and negative"


def _select(table: Table, columns: Columns) -> Rows:
    """The rows of a table in either layout; raises :class:`UserError` where its columns are of neither."""
    names = list(table.columns)
    positive = next((name for name in POSITIVES if name in names), None)
    negatives = [name for name in names if NEGATIVE.fullmatch(name)]
    if positive and negatives and not columns.text_pair:
        candidates = (columns.text,) if columns.text else QUERIES
        query = next((name for name in candidates if name in names), None)
        if query is None:
            raise UserError(
                f"'{table.source}' has the columns {', '.join(names)}: expected one of queries, called "
                f"{' or '.join(candidates)}{nearest(candidates[0], names)}; name yours with --text_column"
            )
        if columns.label:
            raise UserError(
                f"label_column {columns.label!r} with '{table.source}': its columns {positive} and {negatives[0]} say "
                "what is relevant; leave it out"
            )
        return _split(table, query, positive, negatives)
    if not columns.text and not any({*layout} <= {*names} for layout in columns.layouts):
        wanted = next((name for name in ("query", "document") if name not in names), "query")
        raise UserError(
            f"'{table.source}' has the columns {', '.join(names)}: expected {EXPECTED}{nearest(wanted, names)}; name "
            "others with --text_column (queries), --text_pair_column (documents) and --label_column"
        )
    if columns.text and not columns.text_pair:
        raise UserError(f"text_column {columns.text!r} alone: expected --text_pair_column, of the documents, too")
    return select_rows(table, columns)


def _split(table: Table, query: str, positive: str, negatives: Sequence[str]) -> Rows:
    """Pairs of rows with positives and negatives."""
    relevance: dict[str, dict[str, float]] = {}  # query -> document -> label
    both = 0
    queries = table.columns[query][:]
    cells = {name: table.columns[name][:] for name in (positive, *negatives)}
    for row, text in enumerate(queries):
        check_not_blank(text, row, table.source, "query")
        labels = relevance.setdefault(text, {})
        for kind, names, label in (("positive", [positive], 1.0), ("negative", negatives, 0.0)):
            documents = [each for name in names for each in _documents(cells[name][row], name, row, table.source)]
            if not documents:
                raise UserError(f"row {row} of '{table.source}' has no {kind} document: expected one or more")
            for document in documents:
                both += labels.get(document, label) != label
                labels[document] = max(label, labels.get(document, label))
    notes = [f"{both:,} documents both positive and negative for a query count as positive"] if both else []
    if outputs := [name for name in table.columns if name.startswith("teacher_")]:
        notes.append(f"not read: {', '.join(outputs)} (only for rows of one query and one document)")
    pairs = [(text, document) for text, documents in relevance.items() for document in documents]
    return Rows(
        source=table.source,
        texts=[list(column) for column in zip(*pairs, strict=True)],
        labels=[label for documents in relevance.values() for label in documents.values()],
        split=table.split,
        unused="; ".join(notes),
    )


def _documents(cell: Any, name: str, row: int, source: str) -> list[str]:
    """The documents of a cell: one text, or a list, in columns for several also as text; none of an empty cell."""
    if cell is None or cell == "" or cell != cell:
        return []
    if isinstance(cell, str) and SEVERAL.fullmatch(name) and is_bracketed(cell):
        try:
            cell = parse_list(cell)
        except (ValueError, SyntaxError):
            raise UserError(
                f'row {row} of \'{source}\' has the {name} {cell!r:.60}: expected a list such as ["a", "b"]'
            ) from None
    documents = list(cell) if isinstance(cell, list | tuple) else [cell]
    for document in documents:
        check_not_blank(document, row, source, name)
    return documents


def check_not_blank(text: Any, row: int, source: str, what: str) -> None:
    """Raise :class:`UserError` for what is not text, and for blank text."""
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"row {row} of '{source}' has the {what} {text!r:.40}: expected text")


DOCUMENT_COLUMNS = Columns(
    layouts=tuple(itertools.product(QUERIES, DOCUMENTS)),
    labels=("label", "labels", "relevance", "score"),  # a score beside relevance may be that of a retriever
    example="sentence-transformers/msmarco",
    select=_select,
)
