"""Folders of cached teacher outputs within a limit: those in use are locked, the least recently used are evicted."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from itrd_nlp.utils.errors import DamagedError, UserError, first_line, writing
from itrd_nlp.utils.io import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows, which neither renames nor removes a folder in which a file is open
    fcntl = None  # type: ignore[assignment]

LIMIT = "ITRD_TEACHER_CACHE_LIMIT"  # environment variable: GiB that all folders of `auto` take together
DEFAULT_LIMIT = 50.0
LOCK = "in_use.lock"  # of a folder: locked by all that read or fill it, shared
USED = "used.json"  # of a folder: its time is that of the last use; the bytes that it will take
ROOT_LOCK = ".lock"  # one process at a time makes room
EVICTED = ".evicted-"  # what is being removed; a kill may leave it behind
PATIENCE = 60.0  # seconds until another process has made room


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
    """Raise :class:`UserError` for a limit that is none, or a file in the folder's place, before training."""
    if teacher_cache == "auto":
        total_limit()
    elif teacher_cache != "off":
        folder = Path(teacher_cache).expanduser().absolute()
        existing = _existing(folder)
        if not existing.is_dir():
            raise UserError(f"teacher_cache {teacher_cache}: {existing} is a file: expected a folder, auto or off")


class Lock:
    """An open file that is locked until it is closed, by this process and by all that it has forked since."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    __del__ = close


def lock_in_use(folder: Path) -> Lock | None:
    """Keep a folder from being evicted until the lock is closed; None where there is no such folder.

    Where files cannot be locked, on some network file systems or on one that is read-only and has no lock file, the
    folder is used without: there it is not evicted either, as that takes the same lock.
    """
    path = folder / LOCK
    while folder.is_dir():
        try:
            lock = Lock(_open(path))
        except OSError:
            return Lock(-1) if folder.is_dir() else None
        try:
            locked = fcntl is None or _flock(lock, fcntl.LOCK_SH)
            if locked and os.path.samestat(os.fstat(lock.descriptor), path.stat()):
                return lock
        except FileNotFoundError:  # evicted in between
            pass
        except OSError:  # no locks here
            return lock
        lock.close()
        time.sleep(0.02)  # somebody looks whether to evict it, or does
    return None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's: a shared lock needs no more


def _flock(lock: Lock, kind: int) -> bool:
    try:
        fcntl.flock(lock.descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_unused(folder: Path) -> Lock | None:
    """An exclusive lock of a folder; None where somebody uses it, or it cannot be locked or removed."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    try:
        lock = Lock(os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_CLOEXEC", 0)))
        if fcntl is None or _flock(lock, fcntl.LOCK_EX):
            return lock
    except FileNotFoundError:  # made by a version that locked nothing
        return Lock(-1)
    except OSError:
        pass
    return None


class Entry(NamedTuple):
    """A folder of cached teacher outputs: its bytes, when it was last used, the bytes that it was announced to take."""

    folder: Path
    size: int
    used: float
    announced: int = 0

    @property
    def last_used(self) -> str:
        """The minute of the last use, local time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))


def entries(root: Path) -> list[Entry]:
    """The folders of cached teacher outputs below ``root``, the least recently used first; nothing else counts."""
    named = [path for path in root.iterdir() if re.fullmatch("[0-9a-f]{12}", path.name)] if root.is_dir() else []
    found = [_entry(path) for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda entry: entry.used)


def _entry(folder: Path) -> Entry:
    sizes, times = [0], [0.0]
    for path in folder.glob("*"):
        with suppress(OSError):  # gone by now
            stat = path.stat()
            sizes.append(stat.st_size)
            times.append(stat.st_mtime)
    used, announced = max(times), 0
    with suppress(OSError, DamagedError, KeyError, TypeError, ValueError):  # none in those of earlier versions
        used = (folder / USED).stat().st_mtime
        announced = int(read_json(folder / USED)["bytes"])
    return Entry(folder, sum(sizes), min(used, time.time()), announced)  # a clock that was ahead keeps nothing for ever


def default_folder() -> Path:
    """Where ``auto`` writes: beside the Hub's cache."""
    return Path(HF_HOME).absolute() / "itrd_nlp" / "teacher_cache"


def stamp_used(folder: Path) -> None:
    """Note that a folder is used now, where it may be written."""
    with suppress(OSError):
        os.utime(folder / USED)


def announce(folder: Path, size: int) -> None:
    """Note how many bytes a folder will take once it is filled, for other processes that look for room."""
    write_json(folder / USED, {"bytes": size})


class Room(NamedTuple):
    """What has to be evicted, with the locks that keep it from being used; or the reason why that is not enough."""

    evicted: list[Entry]
    locks: dict[Path, Lock]
    reason: str | None = None


def find_room(folder: Path, size: int, needed: int, limit: int) -> Room:
    """Choose what to evict, removing nothing, so that ``folder`` can take ``size`` bytes, ``needed`` of them new."""
    root = folder.parent
    others = [entry for entry in entries(root) if entry.folder != folder]
    locks = {entry.folder: lock for entry in others if (lock := _lock_unused(entry.folder))}
    taken = sum(e.size if e.folder in locks else max(e.size, e.announced) for e in others)
    free = shutil.disk_usage(_existing(root)).free
    excess = max(taken + size - limit, needed - 0.9 * free)
    chosen: list[Entry] = []
    for entry in others:
        if excess > 0 and entry.folder in locks:
            chosen.append(entry)
            excess -= entry.size
    if excess <= 0:
        return Room(chosen, locks)
    in_use = sum(max(e.size, e.announced) for e in others if e.folder not in locks)
    return Room(
        [],
        locks,
        f"it takes {gib(size)}: {root} may take {gib(limit)} ({LIMIT}), of which other runs or users have "
        f"{gib(in_use)}, and its disk has {gib(free)} left; --teacher_cache FOLDER would write it elsewhere",
    )


def make_room(
    folder: Path, size: int, needed: int, limit: int, hold: Callable[[], bool], say: Callable[[str], None]
) -> str | None:
    """Evict what :func:`find_room` chooses, then announce and ``hold`` the folder; why there is no room, or None.

    One process at a time does so. A folder disappears at once, by renaming, before its files are removed.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ROOT_LOCK, timeout=PATIENCE, mode=0o666):
            for path in root.glob(f"{EVICTED}*"):  # left behind by a kill
                shutil.rmtree(path, ignore_errors=True)
            room = find_room(folder, size, needed, limit)
            for entry in room.evicted:
                _evict(entry, room.locks[entry.folder])
                when = time.strftime("%Y-%m-%d", time.localtime(entry.used))
                say(f"{entry.folder} is evicted: {gib(entry.size)}, last used {when}")
            if room.reason is None:
                folder.mkdir(exist_ok=True)
                announce(folder, size)
                hold()
            return room.reason
    except Timeout:
        return f"another process makes room in {root}"
    except (OSError, NotImplementedError) as error:
        return f"{root} cannot be written or locked ({first_line(error)})"


def _evict(entry: Entry, lock: Lock) -> None:
    if os.name == "nt":  # where no folder with an open file is renamed
        lock.close()
    aside = entry.folder.with_name(f"{EVICTED}{uuid4().hex}")
    entry.folder.rename(aside)
    shutil.rmtree(aside)


def clear(root: Path) -> tuple[list[Entry], list[Entry]]:
    """Remove the folders of cached teacher outputs below ``root``, but for those in use.

    Returns:
        What was removed, and what was left because it is in use or another user's.
    """
    removed, left = [], []
    for entry in entries(root):
        lock = _lock_unused(entry.folder)
        if lock is None:
            left.append(entry)
            continue
        with writing(entry.folder):
            _evict(entry, lock)
        lock.close()
        removed.append(entry)
    return removed, left


def no_room(folder: Path, needed: int) -> str | None:
    """Why ``needed`` bytes cannot be written to ``folder``, or None."""
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    return f"it takes {gib(needed)} and {existing} has {gib(free)} left" if needed > 0.9 * free else None


def _existing(path: Path) -> Path:
    """A path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def gib(count: float) -> str:
    """Bytes for people.

    Example:
        >>> gib(3 * 2**30), gib(5 * 2**20)
        ('3.00 GiB', '5.0 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
