"""Data sets of the Hub, or folders that `datasets` reads."""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from itrd_nlp.errors import UserError, first_line


def load_splits(name: str, config: str | None = None, owner: str = "user") -> DatasetDict:
    """The splits of a data set; no code of it is run.

    Args:
        name: Hub id, or a folder.
        config: which of the data sets that it holds.
        owner: of a well-known data set of the kind, for the message about an id without one.

    Raises:
        UserError: no such data set, one that comes with a script, or no way to the Hub.
    """
    if "/" not in name and not Path(name).is_dir():
        raise UserError(f"dataset '{name}' has no namespace: write it as on the Hub, such as '{owner}/{name}'")
    try:
        return load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: it has a script
        advice = "check its name, --dataset_config and the network"
        raise UserError(f"dataset '{name}' could not be loaded: {advice} ({first_line(error)})") from error
