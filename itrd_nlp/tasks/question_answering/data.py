"""Questions with a context and answers, from the Hub or from files, in the columns of SQuAD."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from itrd_nlp.tasks.plain_files import Columns
from itrd_nlp.tasks.question_answering.files import official_rows
from itrd_nlp.tasks.question_answering.gold_answers import (
    ANSWER_COLUMNS,
    FLAT,
    answer_cell,
    is_impossible,
    is_missing,
    locate,
    read_answers,
)
from itrd_nlp.tasks.tabular import Table, read_dataset, read_table, split_of
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)

VERSION = 2  # part of the cache key of `normalise`: raise it when that changes
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
FEATURES = Features(
    {"id": Value("string"), "question": Value("string"), "context": Value("string"), "answers": ANSWERS}
)


class Questions(NamedTuple):
    """Both splits, where there are any, and how many training questions were skipped, by the reason."""

    train: Dataset | None
    validation: Dataset | None
    skipped: dict[str, int]


def load_squad(
    dataset: str | None = None, train_file: str | None = None, validation_file: str | None = None
) -> Questions:
    """Loads questions for training and validation.

    Args:
        dataset: Hub id with the columns of SQuAD, such as `rajpurkar/squad` or `rajpurkar/squad_v2`.
        train_file: SQuAD's own `.json`, or rows as `.csv`, `.jsonl`, `.json` or `.parquet` with the columns question,
            context and either answers or answer_text (or answer) and answer_start; id and answer_start may be missing,
            and is_impossible says that there is none: see ``gold_answers``. Takes
            the place of the dataset's training split.
        validation_file: the same for validation.

    Returns:
        Both splits with the columns id, question, context, answers {text, answer_start}; None where there is none; and
        what was skipped.
        An answer that is not at its offset is moved to its nearest occurrence in the context. One that does not occur
        drops a training question, with a warning that counts them; in validation it stays, at offset -1.

    Raises:
        UserError: nothing given, or a dataset or file that cannot be read.
    """
    if dataset is None and train_file is None and validation_file is None:
        raise UserError("no data given: pass a dataset such as 'rajpurkar/squad', or a train_file or validation_file")
    train = validation = None
    read = 0  # training questions
    if dataset is not None and (train_file is None or validation_file is None):
        train, validation, read = _from_hub(dataset)
    if train_file is not None:
        train, read = _from_file(train_file, training=True)
    if validation_file is not None:
        validation, _ = _from_file(validation_file, training=False)
    lost = read - len(train or ())
    return Questions(
        train, validation, {"training questions without their answer in the context": lost} if lost else {}
    )


def read_questions(file: str) -> Dataset:
    """Questions to answer, from a file of any form `load_squad` reads; answers may be missing and are left out.

    Returns:
        The columns id, question and context.

    Raises:
        UserError: a file that cannot be read.
    """
    columns = read_table(file, "validation", "questions", official_rows).lists()
    _check_columns(columns, file, answered=False)
    count = len(columns["question"])
    kept: Columns = {name: columns[name] for name in ("id", "question", "context") if name in columns}
    rows = normalise({**kept, "answers": [[]] * count}, range(count), source=file, training=False)
    return _checked(Dataset.from_dict(rows, features=FEATURES), count, file, training=False).remove_columns("answers")


def normalise(
    columns: Columns, indices: Iterable[int], source: str, training: bool, version: int = VERSION
) -> dict[str, list[Any]]:
    """Rows in the columns of SQuAD; see `load_squad`.

    Args:
        columns: question, context and the answers in one of the known forms, each a list of n values.
        indices: (n,) row numbers, for messages and missing ids.
        source: file or dataset, for messages.
        training: drop questions none of whose answers occurs in the context.
        version: part of the key under which `datasets` caches the result.

    Raises:
        UserError: a question or context that is no text, or what `read_answers` refuses.
    """
    result: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for row, index in enumerate(indices):
        values = {name: column[row] for name, column in columns.items()}
        place = f"row {index} of '{source}'"
        for name in ("question", "context"):
            if not isinstance(values[name], str):
                raise UserError(f"{place}: expected text in column '{name}', found {values[name]!r:.40}")
        located = [locate(values["context"], text, start) for text, start in read_answers(values, place)]
        found = [(text, start) for text, start in located if start >= 0 or not training]
        if located and not found:
            continue
        result["id"].append(_identity(values.get("id"), index))
        result["question"].append(values["question"])
        result["context"].append(values["context"])
        result["answers"].append({"text": [text for text, _ in found], "answer_start": [start for _, start in found]})
    return result


def _from_hub(name: str) -> tuple[Dataset | None, Dataset | None, int]:
    splits = read_dataset(name, owner="rajpurkar", layout=official_rows)
    train, validation = split_of(splits, "train"), split_of(splits, "validation")
    if train is None and validation is None:
        raise UserError(f"dataset '{name}' has the splits {sorted(splits)}; expected train or validation")
    made = [None if table is None else _questions(table, table is train) for table in (train, validation)]
    return made[0], made[1], len(train or ())


def _from_file(file: str, training: bool) -> tuple[Dataset, int]:
    table = read_table(file, "train" if training else "validation", "questions", official_rows)
    return _questions(table, training), len(table)


def _questions(table: Table, training: bool) -> Dataset:
    """The rows of a table in the columns of SQuAD."""
    _check_columns(table.columns, table.source)
    answers = {name: table.columns[name][:] for name in ANSWER_COLUMNS if name in table.columns}
    _check_answered(answers, len(table), table.source)
    options: dict[str, Any] = {"source": table.source, "training": training}
    if table.dataset is not None:  # which keeps what it made
        options |= {"version": VERSION}
        names, kind = table.dataset.column_names, "training" if training else "validation"
        data = table.dataset.map(
            normalise,
            batched=True,
            with_indices=True,
            remove_columns=names,
            features=FEATURES,
            fn_kwargs=options,
            desc=f"Reading {kind} questions",
        )
    else:
        rows = normalise(table.lists(), range(len(table)), **options)
        data = Dataset.from_dict(rows, features=FEATURES)
    return _checked(data, len(table), table.source, training)


def _identity(value: Any, index: int) -> str:
    """The id of a question: as given, a whole number as such where missing ones made it a float, else its row."""
    if value is None or value != value:  # NaN: missing
        return str(index)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _check_answered(columns: Columns, count: int, source: str) -> None:
    """Warn of cells without an answer, which may have been forgotten; refuse data that has no other ones.

    An empty list is no such cell, nor one of a question that ``is_impossible``.
    """
    rows = ({name: columns[name][i] for name in ANSWER_COLUMNS if name in columns} for i in range(count))
    cells = [
        answer_cell(row)
        for i, row in enumerate(rows)
        if not is_impossible(row.get("is_impossible"), f"row {i} of '{source}'")
    ]
    empty = sum(is_missing(cell) or cell == "" for cell in cells)
    if empty == count and all(map(is_missing, cells)):
        raise UserError(
            f"row 0 of '{source}': expected answers, found none; an empty list says that there is no answer"
        )
    if empty:
        logger.warning("%d of %d questions of '%s' have an empty answer: taken as having none", empty, count, source)


def _check_columns(names: Iterable[str], source: str, answered: bool = True) -> None:
    found = list(names)
    missing = [name for name in ("question", "context") if name not in found]
    if answered and not {"answers", *FLAT} & set(found):
        missing.append("answers (or answer_text, or answer)")
    if missing:
        have = ", ".join(str(name) for name in found if name is not None)
        raise UserError(f"'{source}' lacks the columns {', '.join(missing)}; found {have}: rename its columns")


def _checked(data: Dataset, count: int, source: str, training: bool) -> Dataset:
    if len(data) < count:
        logger.warning("dropped %d of %d questions of '%s': no answer in context", count - len(data), count, source)
    if not training:
        outside = [row["id"] for row in data.select_columns(["id", "answers"]) if -1 in row["answers"]["answer_start"]]
        if outside:
            text = "%d of %d questions of '%s' have an answer that is not in their context, the first with the id %r"
            logger.warning(f"{text}: no model can find it", len(outside), len(data), source, outside[0])
    if not len(data):
        raise UserError(f"'{source}' holds no usable question: expected answers that occur in their context")
    if not training and len(set(data["id"])) < len(data):
        raise UserError(f"'{source}' gives the same id to several questions: ids of validation questions must differ")
    return data
