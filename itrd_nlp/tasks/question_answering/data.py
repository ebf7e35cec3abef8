"""Questions with a context and answers, from the Hub or from files, in the columns of SQuAD."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from itrd_nlp.tasks.cells import is_missing
from itrd_nlp.tasks.question_answering.gold_answers import FLAT, answer_cell, is_impossible, locate, read_answers
from itrd_nlp.tasks.tabular import Table, load_tables, read_table
from itrd_nlp.tasks.tokenising import check_text
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)

TEXTS = ("question", "context")
COLUMNS = ("id", *TEXTS, "answers", *FLAT, "answer_start", "is_impossible")  # that are read
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
FEATURES = Features({**dict.fromkeys(("id", *TEXTS), Value("string")), "answers": ANSWERS})


class Questions(NamedTuple):
    """Both splits, where there are any, and how many training questions were skipped, by the reason."""

    train: Dataset | None
    validation: Dataset | None
    skipped: dict[str, int]


def load_squad(
    dataset: str | None = None, train_file: str | None = None, validation_file: str | None = None
) -> Questions:
    """Load questions for training and validation.

    Args:
        dataset: Hub id with the columns of SQuAD, such as `rajpurkar/squad` or `rajpurkar/squad_v2`.
        train_file: SQuAD's own `.json`, or rows as `.csv`, `.jsonl`, `.json` or `.parquet` with the columns question,
            context and either answers or answer_text (or answer) and answer_start, see ``gold_answers``; id,
            answer_start and is_impossible are optional. Replaces the training split of the dataset.
        validation_file: the same for validation.

    Returns:
        Both splits with the columns id, question, context, answers {text, answer_start}, None where there is none; and
        what was skipped.
        An answer that is not at its offset is moved to its nearest occurrence in the context. A training question none
        of whose answers occurs is dropped, with a warning that counts them; in validation it stays, at offset -1.

    Raises:
        UserError: nothing given, or a dataset or file that cannot be read.
    """
    train_table, validation_table = load_tables(
        dataset, None, train_file, validation_file, "rajpurkar/squad", "questions"
    )
    train = None if train_table is None else _questions(train_table, training=True)
    validation = None if validation_table is None else _questions(validation_table, training=False)
    lost = len(train_table or ()) - len(train or ())
    return Questions(
        train, validation, {"training questions without their answer in the context": lost} if lost else {}
    )


def read_questions(file: str) -> Dataset:
    """Read questions to answer from a file of any form that `load_squad` reads; answers are optional and left out.

    Returns:
        The columns id, question and context.

    Raises:
        UserError: a file that cannot be read.
    """
    table = read_table(file, "validation", "questions")
    return _questions(table, training=False, answered=False).remove_columns("answers")


def _questions(table: Table, training: bool, answered: bool = True) -> Dataset:
    """The rows of a table in the columns of SQuAD; ``training`` drops those whose answers are not in their context."""
    source, count = table.source, len(table)
    _check_columns(table, answered)
    cells = {name: table.columns[name][:] for name in COLUMNS if name in table.columns}
    rows: list[dict[str, Any]] = []
    missing = empty = 0
    for i in range(count):
        values, where = {name: column[i] for name, column in cells.items()}, f"row {i} of '{source}'"
        for name in TEXTS:
            check_text(values[name], where, name)
        row = {"id": _identity(values.get("id"), i), **{name: values[name] for name in TEXTS}}
        pairs = []
        if answered:
            pairs = [locate(row["context"], text, start) for text, start in read_answers(values, where)]
            cell = answer_cell(values)
            if not is_impossible(values.get("is_impossible"), where):
                missing += cell is None
                empty += is_missing(cell)
        inside = [(text, start) for text, start in pairs if start >= 0]
        if training and pairs and not inside:
            continue
        texts, starts = zip(*(inside if training else pairs), strict=True) if pairs else ((), ())
        rows.append({**row, "answers": {"text": texts, "answer_start": starts}})
    if missing == count:
        raise UserError(
            f"row 0 of '{source}': expected answers, found none; an empty list says that there is no answer"
        )
    if not rows:
        raise UserError(f"'{source}' holds no usable question: expected answers that occur in their context")
    if not training and len({row["id"] for row in rows}) < count:
        raise UserError(f"'{source}' gives the same id to several questions: ids of validation questions must differ")
    if empty:
        logger.warning("%d of %d questions of '%s' have an empty answer: taken as having none", empty, count, source)
    _warn_of_lost(rows, count, source)
    return Dataset.from_list(rows, features=FEATURES)


def _warn_of_lost(rows: list[dict[str, Any]], count: int, source: str) -> None:
    """Warn of questions that were dropped, or whose answers no model can find."""
    if len(rows) < count:
        logger.warning("dropped %d of %d questions of '%s': no answer in context", count - len(rows), count, source)
    outside = [row["id"] for row in rows if -1 in row["answers"]["answer_start"]]
    if outside:
        text = "%d of %d questions of '%s' have an answer that is not in their context, the first with the id %r"
        logger.warning(f"{text}: no model can find it", len(outside), count, source, outside[0])


def _check_columns(table: Table, answered: bool) -> None:
    missing = [name for name in TEXTS if name not in table.columns]
    if answered and not {"answers", *FLAT} & {*table.columns}:
        missing.append("answers (or answer_text, or answer)")
    if missing:
        names = ", ".join(table.columns)
        raise UserError(f"'{table.source}' lacks the columns {', '.join(missing)}; found {names}: rename its columns")


def _identity(value: Any, row: int) -> str:
    """The id of a question; its row where it is missing. Missing ids make floats of whole numbers."""
    if is_missing(value):
        return str(row)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
