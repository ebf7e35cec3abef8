"""UserError, the exception for wrong input, and what builds its message."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SAME = 0.9  # share of equal characters above which a letter was mistyped
ALIKE = 0.66  # share of equal characters above which a name may be a mistyped one


class UserError(ValueError):
    """Wrong input: what was given, what was expected, what to do; the command line prints it without a traceback."""


class DamagedError(UserError):
    """A file whose content is not what was written."""


class BusyError(UserError):
    """Another process is using it: wait, and try again."""


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Raise :class:`UserError` where a text file cannot be read, is a folder, or is not UTF-8.

    Args:
        expected: what the file should hold, for the message.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): expected {expected}; save it as UTF-8") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder: expected {expected}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected {expected}: check its path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}): expected {expected}") from error


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise :class:`UserError` where a file or folder cannot be written, as on a full disk or without permission."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's, not the system's: nothing was to be written
            raise
        reason = error.strerror or one_line(error)
        raise UserError(f"{path} cannot be written ({reason}): make room there, or name another place") from error


@contextmanager
def needing(libraries: str, extra: str) -> Iterator[None]:
    """Raise :class:`UserError` where the block imports what is not installed.

    Args:
        libraries: who needs which, as "plots need matplotlib".
        extra: of this package, which installs them.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:  # the second where torchvision was built for another torch
        raise UserError(f"{libraries}: pip install 'itrd_nlp[{extra}]' ({one_line(error)})") from None


def one_line(error: BaseException, limit: int | None = 160) -> str:
    """An exception's message on one line, cut between words; the name of its type where it has none.

    Of a :class:`UserError` from a worker of a DataLoader, which adds its traceback, the worker's message alone.
    """
    text = str(error)
    if isinstance(error, UserError) and text.startswith("Caught "):
        text = text.rpartition("Error: ")[2]
    text = " ".join(text.split()) or type(error).__name__
    if limit is None or len(text) <= limit:
        return text
    return (text[:limit].rpartition(" ")[0] or text[:limit]) + " ..."


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for a name of nearly the same letters, those with all its words, or the closest; or "".

    Example:
        >>> nearest("epochs", ["num_train_epochs", "num_proc"])
        "; did you mean 'num_train_epochs'?"
        >>> nearest("l3-kd", ["tag/l3-kd", "embed/l3-kd", "tag/l3"])
        "; did you mean 'tag/l3-kd' or 'embed/l3-kd'?"
        >>> nearest("layer", ["layer_norm_eps", "layers"])
        "; did you mean 'layers'?"
    """
    others = [other for other in known if other != name]
    same = difflib.get_close_matches(name, others, n=1, cutoff=SAME)
    words = _words(name)
    candidates = sorted(
        (other for other in others if words and words <= _words(other)), key=lambda other: (len(other), other)
    )
    matches = same or candidates[:3] or difflib.get_close_matches(name, others, n=1, cutoff=ALIKE)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _words(name: str) -> set[str]:
    return {*re.split(r"\W|_", name.lower())} - {""}
