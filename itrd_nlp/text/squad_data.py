"""Questions with a context and answers, from the Hub or from files, in the columns of SQuAD."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from itrd_nlp.errors import UserError
from itrd_nlp.hub_data import load_splits
from itrd_nlp.text.squad_files import Columns, read_file

logger = logging.getLogger(__name__)

VERSION = 1  # part of the cache key of `normalise`: raise it when that changes
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
            context and either answers or answer_text (or answer) and answer_start; id and answer_start may be missing.
            Takes the place of the dataset's training split.
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
    columns = read_file(file)
    _check_columns(columns, file, answered=False)
    count = len(columns["question"])
    kept = {name: columns[name] for name in ("id", "question", "context") if name in columns}
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
        UserError: a question or context that is no text, or answers in no known form.
    """
    result: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for row, index in enumerate(indices):
        values = {name: column[row] for name, column in columns.items()}
        place = f"row {index} of '{source}'"
        for name in ("question", "context"):
            if not isinstance(values[name], str):
                raise UserError(f"{place}: expected text in column '{name}', found {values[name]!r:.40}")
        texts, given = _answers(values, place)
        starts = [_locate(values["context"], text, start) for text, start in zip(texts, given, strict=True)]
        found = [(text, start) for text, start in zip(texts, starts, strict=True) if start >= 0 or not training]
        if texts and not found:
            continue
        identity = values.get("id")
        result["id"].append(str(index if identity is None else identity))
        result["question"].append(values["question"])
        result["context"].append(values["context"])
        result["answers"].append({"text": [text for text, _ in found], "answer_start": [start for _, start in found]})
    return result


def _from_hub(name: str) -> tuple[Dataset | None, Dataset | None, int]:
    splits = load_splits(name, owner="rajpurkar")
    if not {"train", "validation"} & splits.keys():
        raise UserError(f"dataset '{name}' has the splits {sorted(splits)}; expected train or validation")
    result: dict[str, Dataset | None] = {"train": None, "validation": None}
    for split in result.keys() & splits.keys():
        data, training = splits[split], split == "train"
        _check_columns(data.column_names, name)
        result[split] = _checked(
            data.map(
                normalise,
                batched=True,
                with_indices=True,
                remove_columns=data.column_names,
                features=FEATURES,
                fn_kwargs={"source": name, "training": training, "version": VERSION},
                desc=f"Reading {split} questions",
            ),
            len(data),
            name,
            training,
        )
    return result["train"], result["validation"], len(splits["train"]) if "train" in splits else 0


def _from_file(file: str, training: bool) -> tuple[Dataset, int]:
    columns = read_file(file)
    _check_columns(columns, file)
    count = len(columns["question"])
    rows = normalise(columns, range(count), source=file, training=training)
    if "answers" not in columns:  # a cell for each, which may have been forgotten
        empty = sum(not answers["text"] for answers in rows["answers"])
        if empty:
            logger.warning("%d of %d questions of '%s' have an empty answer: taken as having none", empty, count, file)
    return _checked(Dataset.from_dict(rows, features=FEATURES), count, file, training), count


def _check_columns(names: Iterable[str], source: str, answered: bool = True) -> None:
    found = list(names)
    missing = [name for name in ("question", "context") if name not in found]
    if answered and not {"answers", "answer_text", "answer"} & set(found):
        missing.append("answers (or answer_text, or answer)")
    if missing:
        have = ", ".join(str(name) for name in found if name is not None)
        raise UserError(f"'{source}' lacks the columns {', '.join(missing)}; found {have}: rename its columns")


def _answers(values: Mapping[str, Any], place: str) -> tuple[list[str], list[int | None]]:
    """Texts and offsets (None: not given) from any known form of a row."""
    answers = values.get("answers")
    if answers is None and not {"answer_text", "answer"} & values.keys():
        raise UserError(f"{place}: expected answers, found none; an empty list says that there is no answer")
    if answers is None:
        text = values.get("answer_text", values.get("answer"))
        pairs = [(text, values.get("answer_start"))] if text not in (None, "") else []
    else:
        try:
            answers = json.loads(answers or "[]") if isinstance(answers, str) else answers
            if isinstance(answers, dict):
                starts = answers.get("answer_start", [None] * len(answers["text"]))
                pairs = list(zip(answers["text"], starts, strict=True))
            else:
                pairs = [(answer["text"], answer.get("answer_start")) for answer in answers]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = '{"text": ["..."], "answer_start": [0]}'
            raise UserError(f"{place}: answers {values['answers']!r:.60} are not of the form {expected}") from error
    try:
        return [str(text) for text, _ in pairs], [None if start in (None, "") else int(start) for _, start in pairs]
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: expected a whole number as answer_start ({error})") from error


def _locate(context: str, text: str, start: int | None) -> int:
    """Offset of the occurrence of the text nearest to `start` (None: the first one), or -1."""
    wanted = start or 0
    if not text.strip():
        return -1
    if wanted >= 0 and context.startswith(text, wanted):
        return wanted
    after = context.find(text, max(wanted, 0))
    before = context.rfind(text, 0, max(wanted, 0) + len(text))
    found = [offset for offset in (before, after) if offset >= 0]
    return min(found, key=lambda offset: abs(offset - wanted), default=-1)


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
