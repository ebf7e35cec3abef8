"""Locks of folders: shared by the processes that use one, exclusive for the one that removes it."""

import errno
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which neither renames nor removes a folder in which a file is open
    fcntl = None  # type: ignore[assignment]

LOCK = "in_use.lock"  # in the folder


class Lock:
    """A locked file, until it is closed by this process and by all that it has forked since."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor  # negative where files cannot be locked

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    __del__ = close

    def acquire(self, exclusive: bool = False) -> bool:
        """Lock the file; False where another process has it."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock_in_use(folder: Path) -> Lock | None:
    """Keep a folder from being evicted until the lock is closed; None where there is no such folder.

    Where files cannot be locked, on some network file systems or on one that is read-only and has no lock file, the
    folder is used without a lock. It is not evicted either, as that takes the same lock.
    """
    path = folder / LOCK
    while folder.is_dir():
        try:
            lock = Lock(_open(path))
        except OSError:
            return Lock(-1) if folder.is_dir() else None
        try:
            if lock.acquire() and os.path.samestat(os.fstat(lock.descriptor), path.stat()):
                return lock
        except FileNotFoundError:  # evicted in between
            pass
        except OSError:  # this file system has no locks
            return lock
        lock.close()
        time.sleep(0.02)  # another process is evicting the folder, or deciding whether to
    return None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY)  # another user's: a shared lock needs no more


def lock_unused(folder: Path) -> Lock | None:
    """An exclusive lock of a folder; None where it is in use, or cannot be locked or removed."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    try:
        lock = Lock(os.open(folder / LOCK, os.O_RDWR))
        return lock if lock.acquire(exclusive=True) else None
    except FileNotFoundError:  # written by a version that locked nothing
        return Lock(-1)
    except OSError:
        return None
