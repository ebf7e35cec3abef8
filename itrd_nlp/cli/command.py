"""What a command of ``itrd`` is. Its module imports what is heavy only where it runs: ``--help`` answers at once."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from itrd_nlp.utils.console import ESCAPED
from itrd_nlp.utils.errors import UserError, writing


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
    """Raise :class:`UserError` where a file that is to be written has no folder to be in, or is one."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: expected the name of a file, such as {path}/output")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; raises :class:`UserError` where that cannot be."""
    with writing(path):
        path.write_text(text, "utf-8", ESCAPED)
