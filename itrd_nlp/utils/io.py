"""Files that survive a kill: written under another name, forced to disk, renamed, and checked by their digest."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from itrd_nlp.utils.errors import DamagedError, UserError, one_line, reading, writing

SUM = "sha256"  # key of a JSON file's own digest


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its digest, atomically: readers notice a truncated or changed file."""
    text = json.dumps({**values, SUM: _digest(json.loads(json.dumps(values)))}, indent=1)
    text = re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: "".join(numbers[0].split()), text)  # thousands on one line
    write_atomically(path, f"{text}\n".encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, so that a kill leaves the old one or the new one.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    with writing(path):
        try:
            temporary.write_bytes(content)
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote; an object without a digest, as written by hand, is not checked.

    Raises:
        DamagedError: not a JSON object, or not the one that was written.
    """
    values = load_json(path)
    if not isinstance(values, dict):
        raise DamagedError(f"{path}: expected a JSON object, found {type(values).__name__}")
    if values.pop(SUM, None) not in (None, _digest(values)):
        raise DamagedError(f"{path} is damaged: its digest is not the one that was written with it")
    return values


def load_json(path: Path) -> Any:
    """The value that a JSON file of anybody's holds; raises :class:`DamagedError` where it holds none."""
    try:
        with reading(path, "JSON"):
            return json.loads(path.read_text(encoding="utf-8-sig"))
    except UserError as error:
        raise DamagedError(str(error)) from error
    except ValueError as error:
        raise DamagedError(f"{path}: not JSON ({one_line(error)})") from None


def named_path(path: Path) -> Path:
    """The path, made absolute where it has no name of its own, as ``.`` and ``..`` have none."""
    return path.resolve() if path.name in ("", "..") else path


def replace_durably(temporary: Path, path: Path) -> None:
    """Force a file to disk, then rename it to ``path``."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Have the operating system write a file, or a folder's list of files, to the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every system can sync folders
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def paths_below(root: Path, is_hidden: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """All files and folders in a folder at any depth, also behind links, but hidden ones; each folder once."""
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
        names = [name for name in folders if not is_hidden(name)]
        folders[:] = [name for name in names if os.path.realpath(f"{folder}/{name}") not in seen]
        seen |= {os.path.realpath(f"{folder}/{name}") for name in folders}
        yield from (Path(folder, name) for name in (*folders, *files) if not is_hidden(name))


def make_folder(folder: Path) -> None:
    """Make a folder unless it exists; raises :class:`UserError` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: not a folder that can be made ({error.strerror}); name another") from None


def existing_parent(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())
