"""Files of cached teacher outputs: each appears once it is complete, under a name that carries its checksums."""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.hashing import file_digest
from itrd_nlp.utils.io import replace_durably

logger = logging.getLogger(__name__)

DIGITS = 16  # of each checksum
REFRESH = 30.0  # seconds


class CacheError(UserError):
    """Why teacher outputs cannot be written, such as a full disk."""


def shard_files(folder: Path) -> dict[int, Path]:
    """The files of a folder by the number of their shard."""
    return {int(path.name.partition("-")[0]): path for path in sorted(folder.glob("*.safetensors"))}


class Listing:
    """Whether folders hold a shard, by lists that are made anew at most every ``REFRESH`` seconds.

    A list for each shard would take quadratic time.
    """

    def __init__(self, folders: Iterable[Path]):
        self.folders = list(folders)
        self.files: dict[Path, dict[int, Path]] = {}
        self.listed_at = -math.inf

    def holds(self, folder: Path, number: int) -> bool:
        if time.monotonic() > self.listed_at + REFRESH:
            self.files = {each: shard_files(each) for each in self.folders}
            self.listed_at = time.monotonic()
        return number in self.files[folder]


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor], mode: int) -> None:
    """Write a shard as ``NUMBER-CHECKSUM-CHECKSUM.safetensors``: SHA-256 of the file, and of its header.

    Args:
        mode: permissions of the file.

    Raises:
        CacheError: the folder cannot be written.
    """
    temporary = folder / f"{number:06d}.{uuid4().hex}.tmp"
    try:
        save_file(dict(tensors), temporary)
        temporary.chmod(mode)
        name = f"{number:06d}-{file_digest(temporary)[:DIGITS]}-{_header_digest(temporary)}.safetensors"
        replace_durably(temporary, folder / name)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(f"{folder} cannot be written ({one_line(error)})") from None


def keep_if_intact(path: Path) -> bool:
    """Remove a file that was cut, emptied or overwritten, by its header and size alone; return whether it stays.

    Raises:
        UserError: a damaged file that cannot be removed.
    """
    try:
        with suppress(SafetensorError):
            if _header_digest(path) == path.stem.rpartition("-")[2]:
                with safe_open(path, "pt"):  # compares the size with the header's
                    return True
        logger.info(f"[teacher cache] {path} is damaged and is computed again")
        path.unlink()
    except FileNotFoundError:  # another run has removed it
        pass
    except OSError as error:
        raise UserError(f"{path} is damaged and cannot be removed ({one_line(error)})") from None
    return False


def _header_digest(path: Path) -> str:
    """Checksum of a safetensors file's header, which starts with its length in eight bytes."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
    return hashlib.sha256(length + header).hexdigest()[:DIGITS]


def damaged(folder: Path) -> list[Path]:
    """The files of a folder whose content has changed since they were written: reads them in full."""
    files = sorted(folder.rglob("*.safetensors"))
    return [path for path in files if file_digest(path)[:DIGITS] != path.stem.split("-")[1]]
