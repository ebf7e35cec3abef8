"""Tables from files, folders and data sets of the Hub, with the column types that they declare."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from itrd_nlp.tasks.plain_files import DELIMITED, OBJECTS, read_plain, suffix_of
from itrd_nlp.tasks.plain_splits import is_plain, read_splits
from itrd_nlp.utils.errors import UserError, nearest, one_line

BINARY = (".parquet", ".arrow", ".feather")
SUFFIXES = (*DELIMITED, *OBJECTS, *BINARY)
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "validation_matched", "dev", "val", "valid", "eval", "test"),
}  # purpose -> names
# what `datasets` raises for what it cannot read; RuntimeError: a data set with a script
READING_ERRORS = (OSError, ValueError, LookupError, TypeError, RuntimeError, pyarrow.ArrowException, DatasetsError)


@dataclass(frozen=True)
class Table:
    """Rows in columns.

    Attributes:
        source: file, folder or Hub id, for messages.
        columns: name -> the value of each row; ``[:]`` gives a list. CSV has texts; classes that ``features`` names are
            numbers.
        features: name -> type of `datasets`, where the source declares types: parquet, arrow and the Hub.
        dataset: the data set of `datasets`; None for CSV and JSON.
        split: of a data set with several.
    """

    source: str
    columns: Mapping[str, Any]
    features: Mapping[str, Any] = field(default_factory=dict)
    dataset: Dataset | None = None
    split: str = ""

    def __len__(self) -> int:
        return max((len(values) for values in self.columns.values()), default=0)

    @classmethod
    def of(cls, data: Dataset, source: str, split: str = "") -> Table:
        """Make a table of a data set, as Python values whatever its format."""
        data = data.with_format(None)
        return cls(source, {name: data[name] for name in data.column_names}, data.features, data, split)


def read_table(source: str, purpose: str = "train", what: str = "rows") -> Table:
    """Read what ``--train_file`` or ``--validation_file`` names.

    Args:
        source: a CSV, TSV, JSON or JSON lines file, which may be compressed; a parquet or arrow file; or a folder, see
            :func:`read_folder`.
        purpose: ``train`` or ``validation``: which split of a folder with several.
        what: what messages call the rows.

    Raises:
        UserError: no such file, a file without rows, or one that cannot be read.
    """
    path = Path(source)
    suffix = suffix_of(path)
    if path.is_dir():
        table = read_folder(source, purpose)
    elif not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        advice = nearest(path.name, names) or ": check its path"
        if not names:
            advice = f": there is no folder '{path.parent}' with files in it; check its path"
        raise UserError(f"file '{source}' does not exist{advice}")
    elif suffix in BINARY:
        kind = "parquet" if suffix == ".parquet" else "arrow"
        with _quiet(), _readable(f"file '{source}' is not valid {kind}"):
            table = Table.of(load_dataset(kind, data_files=glob.escape(source), split="train"), source)
    elif suffix in SUFFIXES:
        table = Table(source, read_plain(path, suffix))
    else:
        raise UserError(
            f"file '{source}' ends in '{suffix}': expected one of {', '.join(SUFFIXES)}; text files may be compressed "
            "(.gz, .bz2, .xz)"
        )
    if not len(table):
        raise UserError(f"file '{source}' holds no {what}: expected at least one; add some, or name another file")
    return table


def _names_train(path: Path) -> bool:
    """Whether a file is of the training split, or a folder holds it, as `datasets` reads names."""
    return re.search("(?<![a-z])train(?![a-z])", path.name) is not None


def read_folder(source: str, purpose: str = "train") -> Table:
    """Read one split of a folder: what `Dataset.save_to_disk` wrote, shards, or a data set as the Hub holds it.

    Args:
        purpose: ``train`` or ``validation``: which split, where the folder has several.

    Raises:
        UserError: a folder of another kind, or without the split.
    """
    path = Path(source)
    if (path / "state.json").is_file():
        with _readable(f"folder '{source}' is not what save_to_disk writes"):
            return Table.of(Dataset.load_from_disk(source), source)
    splits = read_dataset(source)
    if [*splits] == ["train"] and not any(map(_names_train, path.rglob("*"))):
        return replace(splits["train"], split="")  # `datasets` calls shards without a split's name train
    table = split_of(splits, purpose)
    if table is None:
        raise UserError(f"folder '{source}' has the splits {sorted(splits)}: expected {' or '.join(SPLITS[purpose])}")
    return table


def read_dataset(name: str, config: str | None = None, owner: str = "user") -> dict[str, Table]:
    """Read the splits of what ``--dataset`` names; arguments and errors as for :func:`load_splits`."""
    if not _is_saved(name):
        with _loadable(name, owner):
            builder = load_dataset_builder(name, config)
        if isinstance(builder, Csv | Json) and is_plain(builder.config):
            splits, features = read_splits(builder), builder.info.features or {}
            return {split: Table(name, columns, features, split=split) for split, columns in splits.items()}
    return {split: Table.of(data, name, split) for split, data in load_splits(name, config, owner).items()}


def load_splits(name: str, config: str | None = None, owner: str = "user") -> DatasetDict:
    """Load the splits of a data set, without running its code.

    Args:
        name: Hub id; or a folder, as the Hub holds it or as `DatasetDict.save_to_disk` wrote it.
        config: which of the data sets that it holds.
        owner: of a well-known data set of the kind, for the message about an id without one.

    Raises:
        UserError: no such data set, one that needs a script, no connection to the Hub, or an unreadable file.
    """
    with _loadable(name, owner):
        if not _is_saved(name):
            return load_dataset(name, config)
        if config is not None:
            raise UserError(f"dataset_config {config!r} with '{name}': it holds one data set; leave it out")
        return DatasetDict.load_from_disk(name)


def load_tables(
    dataset: str | None,
    config: str | None,
    train_file: str | None,
    validation_file: str | None,
    example: str,
    what: str = "rows",
) -> tuple[Table | None, Table | None]:
    """Read the tables to train and to validate with; None where there is none.

    Args:
        dataset, config: see :func:`load_splits`.
        train_file: replaces the training split of the data set, see :func:`read_table`.
        validation_file: the same for validation.
        example: a well-known data set of the kind, for messages.
        what: what messages call the rows.

    Raises:
        UserError: no data given, or data that cannot be read.
    """
    files = {"train": train_file, "validation": validation_file}
    if dataset is None and not any(files.values()):
        raise UserError(f"no data given: pass a dataset such as '{example}', or a train_file or validation_file")
    splits: dict[str, Table] = {}
    if dataset is not None and not all(files.values()):
        splits = read_dataset(dataset, config, owner=example.partition("/")[0])
        if not any(split_of(splits, purpose) for purpose in files):
            raise UserError(f"dataset '{dataset}' has the splits {sorted(splits)}: expected train or validation")
    train, validation = (
        read_table(file, purpose, what) if file else split_of(splits, purpose) for purpose, file in files.items()
    )
    for table in (train, validation):
        if table is not None and not len(table):
            raise UserError(f"dataset '{dataset}' holds no {what} in its split {table.split}: expected at least one")
    return train, validation


def split_of(splits: Mapping[str, Table], purpose: str) -> Table | None:
    """The split to train or to validate with, or None."""
    return next((splits[name] for name in SPLITS[purpose] if name in splits), None)


def _is_saved(name: str) -> bool:
    """Whether `DatasetDict.save_to_disk` wrote a folder."""
    if (Path(name) / "state.json").is_file():
        raise UserError(f"dataset '{name}' holds one split: give it as --train_file or as --validation_file")
    return (Path(name) / "dataset_dict.json").is_file()


@contextmanager
def _loadable(name: str, owner: str) -> Iterator[None]:
    """Raise :class:`UserError` where a data set cannot be loaded."""
    is_folder = Path(name).is_dir()
    if "/" not in name and not is_folder:
        raise UserError(f"dataset '{name}' has no namespace: write it as on the Hub, such as '{owner}/{name}'")
    advice = "check its name, --dataset_config and the network"
    if is_folder:
        advice = "expected files of rows as the Hub holds them, or what save_to_disk writes"
    with _readable(f"dataset '{name}' could not be loaded: {advice}"):
        yield


@contextmanager
def _readable(message: str) -> Iterator[None]:
    """Raise :class:`UserError` with a message and the reason where `datasets` cannot read something."""
    try:
        yield
    except UserError:
        raise
    except READING_ERRORS as error:
        raise UserError(f"{message} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Why `datasets` cannot read something, on one line: the cause of its own errors, which say less."""
    return one_line(error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress of reading local files, and what `datasets` logs before it raises."""
    logger, has_bars = logging.getLogger("datasets"), not datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if has_bars:
            datasets.enable_progress_bars()
