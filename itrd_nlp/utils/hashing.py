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
from itrd_nlp.utils.io import fsync


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The digest of each file by its path below a folder; forces the files to disk."""
    result = {}
    for path in sorted(files):
        fsync(path)
        result[path.relative_to(folder).as_posix()] = file_digest(path)
    return result


def first_damage(folder: Path, expected: Mapping[str, str]) -> str | None:
    """The first difference of a folder's files from their :func:`digests`, in words, or None."""
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
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
    """The first twelve hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON reads them back; enumerations and other objects become text."""
    return json.loads(json.dumps(values, default=str))
