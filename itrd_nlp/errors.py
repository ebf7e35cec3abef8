"""The one exception that means "the input is wrong", told to the user in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: what was given, what was expected, what to do; the command line prints it without a traceback."""


class DamagedError(UserError):
    """A file that is not what was written."""


class BusyError(UserError):
    """Another process is at it: wait, and try again."""


def first_line(error: Exception) -> str:
    """An exception's message on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def nearest(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to a mistyped one, or nothing."""
    matches = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
