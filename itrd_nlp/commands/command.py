"""What a command of ``itrd`` is. Its module imports what is heavy only where it runs: ``--help`` answers at once."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from itrd_nlp.errors import UserError


class Command(NamedTuple):
    """One command: ``itrd NAME ...``.

    Args:
        summary: one line for ``itrd --help``.
        examples: whole command lines, for its own ``--help``; the first also stands in ``itrd --help``.
        run: what it does with its arguments, and with the words that they do not name; returns an exit code, or None.
        arguments: adds them to its parser.
        continues: whether the same command goes on where it was stopped.
        place: what stands first where it also takes any ``--field value`` of a run, e.g. RECIPE; "" where it does not.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[Namespace, list[str]], int | None]
    arguments: Callable[[ArgumentParser], None] = lambda parser: None
    place: str = ""
    continues: bool = False

    @property
    def epilog(self) -> str:
        return "\n  ".join(["examples:", *self.examples])


def check_parent(path: Path, option: str = "--output") -> None:
    """Raise :class:`UserError` where the folder of a file that is to be written does not exist."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")
