"""Folders of cached teacher outputs within a limit: the least recently used are evicted, those in use never."""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from itrd_nlp.distillation.folder_locks import Lock, lock_unused
from itrd_nlp.utils.errors import DamagedError, UserError, one_line, writing
from itrd_nlp.utils.io import existing_parent, paths_below, read_json, write_json

logger = logging.getLogger(__name__)

AUTO_FOLDER = Path(HF_HOME).absolute() / "itrd_nlp" / "teacher_cache"  # where `auto` writes: beside the Hub's cache
LIMIT = "ITRD_TEACHER_CACHE_LIMIT"  # environment variable: GiB that all folders of `auto` take together
DEFAULT_LIMIT = 50.0
USED = "used.json"  # in a folder: its modification time is the last use; output -> the bytes that it will take
ROOT_LOCK = ".lock"  # lets one process at a time make room
EVICTED = ".evicted-"  # prefix of a folder that is being removed; a kill may leave it behind
PATIENCE = 60.0  # seconds to wait while another process makes room


def total_limit() -> int:
    """Bytes that ``auto`` may take in total, by the environment variable ``ITRD_TEACHER_CACHE_LIMIT``."""
    text = os.environ.get(LIMIT, str(DEFAULT_LIMIT))
    try:
        number = float(text)
        if not 0 <= number < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"{LIMIT} is {text!r}: expected GiB as a number of 0 or more, e.g. {LIMIT}=50") from None
    return int(number * 2**30)


def check_teacher_cache(teacher_cache: str) -> None:
    """Raise :class:`UserError` for an invalid limit, or a folder that is a file, before anything is trained."""
    if teacher_cache == "auto":
        total_limit()
    elif teacher_cache != "off":
        existing = existing_parent(Path(teacher_cache).expanduser().absolute())
        if not existing.is_dir():
            raise UserError(f"teacher_cache {teacher_cache}: {existing} is a file: expected a folder, auto or off")


class Entry(NamedTuple):
    """A folder of cached teacher outputs."""

    folder: Path
    size: int  # bytes now
    used: float  # time of the last use
    announced: int = 0  # bytes that it will take once it is filled

    @property
    def last_used(self) -> str:
        """The minute of the last use, local time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))

    @property
    def reserved(self) -> int:
        """Bytes that it takes now or will take."""
        return max(self.size, self.announced)


def entries(root: Path) -> list[Entry]:
    """The folders of cached teacher outputs below ``root``, the least recently used first; nothing else counts."""
    paths = [path for path in root.iterdir() if re.fullmatch("[0-9a-f]{12}", path.name)] if root.is_dir() else []
    folders = [_entry(path) for path in paths if path.is_dir() and not path.is_symlink()]
    return sorted(folders, key=lambda entry: entry.used)


def _entry(folder: Path) -> Entry:
    sizes, times = [0], [0.0]
    for path in paths_below(folder):
        with suppress(OSError):  # removed since
            if path.is_file():
                sizes.append(path.stat().st_size)
                times.append(path.stat().st_mtime)
    used = max(times)
    with suppress(OSError):  # earlier versions wrote no such file
        used = (folder / USED).stat().st_mtime
    used = min(used, time.time())  # a clock that was ahead must not protect it for ever
    return Entry(folder, sum(sizes), used, sum(_announced(folder).values()))


def stamp_used(folder: Path) -> None:
    """Record that a folder is used now, where it may be written."""
    with suppress(OSError):
        os.utime(folder / USED)


def announce(folder: Path, outputs: Mapping[str, int]) -> None:
    """Record how many bytes outputs will take in a folder, for other processes that look for room."""
    write_json(folder / USED, {**_announced(folder), **outputs})


def _announced(folder: Path) -> dict[str, int]:
    """Output -> the bytes that it takes or will take."""
    try:
        return {name: size for name, size in read_json(folder / USED).items() if isinstance(size, int)}
    except DamagedError:  # earlier versions wrote no such file
        return {}


def find_room(
    folder: Path, outputs: Mapping[str, int], needed: int, limit: int
) -> tuple[list[tuple[Entry, Lock]], str | None]:
    """Choose what to evict so that ``folder`` can take outputs, ``needed`` bytes of them new.

    Returns:
        What has to be evicted, each locked against use; and the reason why that is not enough, or None.
    """
    root, size = folder.parent, sum({**_announced(folder), **outputs}.values())
    unused: list[tuple[Entry, Lock]] = []
    in_use = 0  # bytes
    for entry in entries(root):
        if entry.folder == folder:
            continue
        if lock := lock_unused(entry.folder):
            unused.append((entry, lock))
        else:
            in_use += entry.reserved
    free = shutil.disk_usage(existing_parent(root)).free
    taken = in_use + sum(entry.size for entry, _ in unused)
    excess = max(taken + size - limit, needed - 0.9 * free)
    evicted = []
    for entry, lock in unused:
        if excess > 0:
            evicted.append((entry, lock))
            excess -= entry.size
    if excess <= 0:
        return evicted, None
    return (
        [],
        f"it takes {gib(size)}: {root} may take {gib(limit)} ({LIMIT}), of which other runs or users have "
        f"{gib(in_use)}, and its disk has {gib(free)} left; --teacher_cache FOLDER would write it elsewhere",
    )


def make_room(
    folder: Path, outputs: Mapping[str, int], needed: int, limit: int, hold: Callable[[], bool]
) -> str | None:
    """Evict what :func:`find_room` chooses, then announce and ``hold`` the folder; why there is no room, or None.

    One process at a time does so. A folder disappears at once, by renaming, before its files are removed.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ROOT_LOCK, timeout=PATIENCE, mode=0o666):
            _remove_evicted(root)
            evicted, reason = find_room(folder, outputs, needed, limit)
            for entry, lock in evicted:
                _evict(entry, lock)
                day = entry.last_used.partition(" ")[0]
                logger.info(f"[teacher cache] {entry.folder} was evicted: {gib(entry.size)}, last used {day}")
            if reason is None:
                folder.mkdir(exist_ok=True)
                announce(folder, outputs)
                hold()
            return reason
    except Timeout:
        return f"another process makes room in {root}"
    except (OSError, UserError, NotImplementedError) as error:
        return f"{root} cannot be written or locked ({one_line(error)})"


def _evict(entry: Entry, lock: Lock) -> None:
    if os.name == "nt":  # where no folder with an open file is renamed
        lock.close()
    renamed = entry.folder.with_name(f"{EVICTED}{uuid4().hex}")
    entry.folder.rename(renamed)
    lock.close()  # NFS would keep an open file, and its folder
    shutil.rmtree(renamed, ignore_errors=True)
    if renamed.exists():  # whose files belong to another user
        logger.warning(f"[teacher cache] {renamed} cannot be removed: delete it yourself")


def _remove_evicted(root: Path) -> None:
    """Remove what a kill during an eviction has left behind."""
    for path in root.glob(f"{EVICTED}*"):
        shutil.rmtree(path, ignore_errors=True)


def clear(root: Path) -> tuple[list[Entry], list[Entry]]:
    """Remove the folders of cached teacher outputs below ``root``, except those in use.

    Returns:
        The removed folders, and those in use or owned by another user.
    """
    removed, remaining = [], []
    _remove_evicted(root)
    for entry in entries(root):
        lock = lock_unused(entry.folder)
        if lock is None:
            remaining.append(entry)
            continue
        with writing(entry.folder):
            _evict(entry, lock)
        lock.close()
        removed.append(entry)
    return removed, remaining


def no_room(folder: Path, needed: int) -> str | None:
    """Why ``needed`` bytes cannot be written to ``folder``, or None."""
    existing = existing_parent(folder)
    free = shutil.disk_usage(existing).free
    return f"it takes {gib(needed)} and {existing} has {gib(free)} left" if needed > 0.9 * free else None


def gib(count: float) -> str:
    """Bytes for people.

    Example:
        >>> gib(3 * 2**30), gib(5 * 2**20)
        ('3.00 GiB', '5.0 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
