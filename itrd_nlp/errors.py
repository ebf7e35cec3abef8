"""The one exception that means "the input is wrong", told to the user in one line."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: what was given, what was expected, what to do; the command line prints it without a traceback."""


class DamagedError(UserError):
    """A file that is not what was written."""


class BusyError(UserError):
    """Another process is at it: wait, and try again."""


def first_line(error: BaseException) -> str:
    """An exception's message on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def nearest(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the names that have all words of a mistyped one, else the closest; or nothing.

    Example:
        >>> nearest("epochs", ["num_train_epochs", "num_proc"])
        "; did you mean 'num_train_epochs'?"
        >>> nearest("l3-kd", ["tag/l3-kd", "embed/l3-kd", "tag/l3"])
        "; did you mean 'tag/l3-kd' or 'embed/l3-kd'?"
    """
    names = [name for name in known if name != given]
    words = _words(given)
    holding = sorted((name for name in names if words and words <= _words(name)), key=lambda name: (len(name), name))
    matches = holding[:3] or difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _words(name: str) -> set[str]:
    return {*re.split(r"\W|_", name.lower())} - {""}
