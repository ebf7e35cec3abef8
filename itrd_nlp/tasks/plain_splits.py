"""The splits of CSV and JSON data sets read by ourselves: `datasets` would guess types, and take NA for missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DownloadManager
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json, JsonConfig

from itrd_nlp.tasks.plain_files import COMPRESSED, DELIMITED, OBJECTS, Columns, read_plain, suffix_of


def is_plain(config: CsvConfig | JsonConfig) -> bool:
    """Whether the data set's card leaves the reading of its files to us: no ``sep``, ``names`` or ``field``."""
    others = ("name", "version", "data_dir", "data_files", "description", "features")
    known = isinstance(config, CsvConfig) and config.sep in (",", ";", "\t")  # which `read_plain` tells apart
    default = CsvConfig(sep=config.sep) if known else type(config)()
    return all(getattr(config, f.name) == getattr(default, f.name) for f in fields(config) if f.name not in others)


def read_splits(builder: Csv | Json) -> dict[str, Columns]:
    """The columns of each split."""
    default = ".csv" if isinstance(builder, Csv) else ".jsonl"
    manager, splits = DownloadManager(dataset_name=builder.dataset_name), {}
    for split, files in builder.config.data_files.items():
        parts = []
        for file in map(str, files):
            suffix = suffix_of(Path(file))
            # `read_plain` decompresses local files, of which the manager would keep an older version
            is_local = Path(file).is_file() and Path(file).suffix in COMPRESSED
            path = Path(file if is_local else manager.download_and_extract(file))
            parts.append(read_plain(path, suffix if suffix in (*DELIMITED, *OBJECTS) else default))
        splits[str(split)] = _joined(parts)
    return splits


def _joined(parts: Sequence[Columns]) -> Columns:
    """The rows of several files, None where a file lacks a column."""
    names = dict.fromkeys(name for part in parts for name in part)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for part in parts:
        count = max(map(len, part.values()), default=0)
        for name, cells in columns.items():
            cells.extend(part.get(name, [None] * count))
    return columns
