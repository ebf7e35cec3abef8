"""Data sets of the Hub, or folders that `datasets` reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from datasets import DatasetBuilder, DatasetDict, load_dataset_builder
from datasets.exceptions import DatasetsError

from itrd_nlp.utils.errors import UserError, first_line

# what `datasets` raises of what it cannot read; RuntimeError: it comes with a script
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, pyarrow.ArrowException, DatasetsError)


def load_splits(name: str, config: str | None = None, owner: str = "user") -> DatasetDict:
    """The splits of a data set, as `datasets` reads them; no code of it is run.

    Args:
        name: Hub id; or a folder, as the Hub holds it or as `DatasetDict.save_to_disk` wrote it.
        config: which of the data sets that it holds.
        owner: of a well-known data set of the kind, for the message about an id without one.

    Raises:
        UserError: no such data set, one that comes with a script, or no way to the Hub.
    """
    if is_saved(name):
        if config is not None:
            raise UserError(f"dataset_config {config!r} with '{name}': it holds one data set; leave it out")
        with _told(name):
            return DatasetDict.load_from_disk(name)
    builder = builder_of(name, config, owner)
    with _told(name):
        builder.download_and_prepare()
        return builder.as_dataset()


def is_saved(name: str) -> bool:
    """Whether `DatasetDict.save_to_disk` wrote a folder; :class:`UserError` for one that holds a single split."""
    if (Path(name) / "state.json").is_file():
        raise UserError(f"dataset '{name}' holds one split: give it as --train_file or as --validation_file")
    return (Path(name) / "dataset_dict.json").is_file()


def builder_of(name: str, config: str | None = None, owner: str = "user") -> DatasetBuilder:
    """What knows the files of a data set and their form, without reading them; see :func:`load_splits`."""
    if "/" not in name and not Path(name).is_dir():
        raise UserError(f"dataset '{name}' has no namespace: write it as on the Hub, such as '{owner}/{name}'")
    with _told(name):
        return load_dataset_builder(name, config)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What `datasets` raises of a data set as :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        advice = "check its name, --dataset_config and the network"
        if Path(name).is_dir():
            advice = "expected files of rows as the Hub holds them, or what save_to_disk writes"
        raise UserError(f"dataset '{name}' could not be loaded: {advice} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Why `datasets` cannot read something, on one line; what it raises itself says less than its cause."""
    cause = error.__cause__
    return first_line(cause if isinstance(error, DatasetsError) and cause else error)
