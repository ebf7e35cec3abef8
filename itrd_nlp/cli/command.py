"""The description of an ``itrd`` command. Commands import heavy modules only when they run, so ``--help`` is fast."""

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
        examples: complete command lines for its own ``--help``; ``itrd --help`` shows the first.
        run: executes the command with its parsed arguments and the remaining words; returns an exit code, or None.
        arguments: adds the command's arguments to its parser.
        subject: the first argument, e.g. RECIPE, of a command that also takes any ``--field value`` of a run; else "".
        continues: whether the same command continues after an interruption.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[Namespace, list[str]], int | None]
    arguments: Callable[[ArgumentParser], None]
    subject: str = ""
    continues: bool = False

    @property
    def epilog(self) -> str:
        return "\n  ".join(["examples:", *self.examples])


def check_parent(path: Path, option: str = "--output") -> None:
    """Raise :class:`UserError` where a file cannot be written because it is a folder, or its folder does not exist."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: expected the name of a file, such as {path}/output")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; make it first")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; raises :class:`UserError` where that fails."""
    with writing(path):
        path.write_text(text, "utf-8", ESCAPED)
