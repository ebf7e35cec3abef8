"""The one reader of tables: files, folders and data sets of the Hub as columns, with the types that they declare."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DownloadManager, load_dataset
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from itrd_nlp.tasks.hub_data import UNREADABLE, builder_of, is_saved, load_splits, reason
from itrd_nlp.tasks.plain_files import DELIMITED, OBJECTS, Columns, Layout, read_plain, suffix_of
from itrd_nlp.utils.errors import UserError, nearest

BINARY = (".parquet", ".arrow", ".feather")
SUFFIXES = (*DELIMITED, *OBJECTS, *BINARY)
SPLITS = {"train": ("train",), "validation": ("validation", "validation_matched", "test")}  # by what they serve


@dataclass(frozen=True)
class Table:
    """Rows in columns, wherever they come from.

    Attributes:
        source: file, folder or Hub id, for messages.
        columns: name -> the value of each row, with ``[:]`` a list. Those of CSV are texts; classes are numbers where
            ``features`` names them.
        features: name -> type of `datasets`, of what declares types: parquet, arrow and the Hub, but not CSV and JSON.
        dataset: what was read by `datasets`; None of CSV and JSON.
        split: of a data set that has several.
    """

    source: str
    columns: Mapping[str, Any]
    features: Mapping[str, Any] = field(default_factory=dict)
    dataset: Dataset | None = None
    split: str = ""

    def __len__(self) -> int:
        return max((len(values) for values in self.columns.values()), default=0)

    def lists(self) -> dict[str, list[Any]]:
        """All columns in memory."""
        return {name: list(values[:]) for name, values in self.columns.items()}

    @classmethod
    def of(cls, data: Dataset, source: str, split: str = "") -> Table:
        """The table of a data set; its own format, such as tensors, is not kept."""
        data = data.with_format(None)
        return cls(source, {name: data[name] for name in data.column_names}, data.features, data, split)


def read_table(place: str, serves: str = "train", what: str = "rows", layout: Layout | None = None) -> Table:
    """What ``--train_file`` or ``--validation_file`` names.

    Args:
        place: a CSV, TSV, JSON, JSON lines, parquet or arrow file, of the first four also compressed; or a folder as
            :func:`read_folder` takes it.
        serves: ``train`` or ``validation``: which split of a folder that has several.
        what: what messages call the rows.
        layout: see :func:`itrd_nlp.tasks.plain_files.read_plain`.

    Raises:
        UserError: nothing there, no row in it, or what cannot be read.
    """
    path = Path(place)
    if path.is_dir():
        table = read_folder(place, serves, layout)
    elif not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, names) if names else f": there is no folder '{path.parent}' with files in it"
        raise UserError(f"file '{place}' does not exist{hint}")
    elif suffix_of(path) in BINARY:
        table = Table.of(read_arrow([path]), place)
    elif suffix_of(path) in (*DELIMITED, *OBJECTS):
        table = Table(place, read_plain(path, suffix_of(path), layout))
    else:
        raise UserError(
            f"file '{place}' ends in '{path.suffix}': expected one of {', '.join(SUFFIXES)}, or .gz of a text file"
        )
    if not len(table):
        raise UserError(f"file '{place}' holds no {what}: expected at least one")
    return table


def read_arrow(files: Sequence[Path]) -> Dataset:
    """Parquet or arrow files of the same columns as one data set, with the classes that their schema names.

    Raises:
        UserError: a file that is not of that form, or has other columns.
    """
    kind = "parquet" if suffix_of(files[0]) == ".parquet" else "arrow"
    try:
        with _quiet():
            return load_dataset(kind, data_files=[str(path) for path in files], split="train")
    except UNREADABLE as error:
        places = f"file '{files[0]}' is" if len(files) == 1 else f"files of '{files[0].parent}' are"
        raise UserError(f"{places} not valid {kind}: {reason(error)}") from error


def read_folder(place: str, serves: str = "train", layout: Layout | None = None) -> Table:
    """One split of a folder: what `Dataset.save_to_disk` wrote, shards, or a data set as the Hub holds it.

    Args:
        serves: ``train`` or ``validation``: which split, where the folder has several.

    Raises:
        UserError: a folder of another kind, or without the split.
    """
    path = Path(place)
    if (path / "state.json").is_file():
        try:
            return Table.of(Dataset.load_from_disk(place), place)
        except UNREADABLE as error:
            raise UserError(f"folder '{place}' is not what save_to_disk writes: {reason(error)}") from error
    splits = read_dataset(place, layout=layout)
    found = split_of(splits, serves)
    if [*splits] == ["train"] and not any("train" in file.relative_to(path).as_posix() for file in path.rglob("*")):
        found = replace(splits["train"], split="")  # as `datasets` calls shards that name no split
    if found is None:
        raise UserError(f"folder '{place}' has the splits {sorted(splits)}: expected {' or '.join(SPLITS[serves])}")
    return found


def read_dataset(
    name: str, config: str | None = None, owner: str = "user", layout: Layout | None = None
) -> dict[str, Table]:
    """The splits of what ``--dataset`` names; no code of it is run.

    Args:
        name: Hub id; or a folder as the Hub holds it, or one that `DatasetDict.save_to_disk` wrote.
        config: which of the data sets that it holds.
        owner: see :func:`itrd_nlp.tasks.hub_data.load_splits`.
        layout: see :func:`itrd_nlp.tasks.plain_files.read_plain`.

    Raises:
        UserError: no such data set, one that comes with a script, no way to the Hub, or a file that cannot be read.
    """
    builder = None if is_saved(name) else builder_of(name, config, owner)
    if not isinstance(builder, Csv | Json):
        return {split: Table.of(data, name, split) for split, data in load_splits(name, config, owner).items()}
    # `datasets` would guess the types of these, and take texts such as NA and null for missing
    declared, made = builder.info.features or {}, {}
    default = ".csv" if isinstance(builder, Csv) else ".jsonl"
    for split, origins in builder.config.data_files.items():
        paths = DownloadManager(dataset_name=builder.dataset_name).download_and_extract(list(origins))
        kinds = [kind if kind in (*DELIMITED, *OBJECTS) else default for kind in map(suffix_of, map(Path, origins))]
        parts = [read_plain(Path(path), kind, layout) for path, kind in zip(paths, kinds, strict=True)]
        made[str(split)] = Table(name, _joined(parts), declared, split=str(split))
    return made


def split_of(splits: Mapping[str, Table], serves: str) -> Table | None:
    """The split that serves to train or to validate, or None."""
    return next((splits[name] for name in SPLITS[serves] if name in splits), None)


def _joined(parts: Sequence[Columns]) -> Columns:
    """The rows of several files under one another; a column that one of them lacks has no values there."""
    sizes = [max(map(len, part.values()), default=0) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part)
    filled = [(part, [None] * size) for part, size in zip(parts, sizes, strict=True)]
    return {name: [cell for part, nothing in filled for cell in part.get(name, nothing)] for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither the progress of reading local files nor what `datasets` logs before it raises."""
    logger, shown = logging.getLogger("datasets"), not datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
