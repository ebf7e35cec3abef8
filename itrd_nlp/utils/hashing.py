"""Digests of files, folders, data and weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset

from itrd_nlp.utils.datasets import NumberedDataset
from itrd_nlp.utils.io import force


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The digest of each file below a folder by its name from there; all of them are forced to disk."""
    made = {}
    for path in sorted(files):
        force(path)
        made[path.relative_to(folder).as_posix()] = file_digest(path)
    return made


def damage(folder: Path, expected: Mapping[str, str]) -> str | None:
    """What is wrong with the files of a folder whose :func:`digests` are known, or None."""
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is gone"
        if file_digest(folder / name) != digest:
            return f"{name} is damaged"
    return None


def data_digest(data: Dataset | NumberedDataset) -> str:
    """Digest of the content of a dataset, such as a task's tokenised examples."""
    if isinstance(data, NumberedDataset):
        return data.digest()
    hashed = hashlib.sha256()
    for table in data.with_format("arrow").iter(batch_size=1000):
        table = table.combine_chunks()  # where chunks end depends on how the data was made
        stream = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(stream, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata())
        hashed.update(memoryview(stream.getvalue()))
    return hashed.hexdigest()[:12]


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of a model's parameters and buffers."""
    hashed = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(memoryview(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()))
    return hashed.hexdigest()[:12]


def digest(values: Any) -> str:
    """Twelve hexadecimal digits that name JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON makes of values; enumerations and other objects are told as text."""
    return json.loads(json.dumps(values, default=str))
