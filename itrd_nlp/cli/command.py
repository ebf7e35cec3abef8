"""What an ``itrd`` command is, and the parser built from them. Commands import heavy modules only when they run."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn

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


class _Parser(ArgumentParser):
    """Raise errors in one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("itrd").strip()
        reason = f"{command}: {message}" if command else "expected `itrd COMMAND ...`"
        raise UserError(f"{reason}; see `{self.prog} --help`")


def build_parser(commands: Mapping[str, Command]) -> ArgumentParser:
    """Build the parser of a command line with these commands."""
    parser = _Parser(
        "itrd",
        description="Distil an encoder and measure what it kept.",
        epilog="\n  ".join(["examples:", *(command.examples[0] for command in commands.values())]),
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"itrd_nlp {version('itrd_nlp')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands.values():
        more = "; any `--field value` of `itrd distill --help` may follow" if command.subject else ""
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary + more,
            epilog=command.epilog,
            allow_abbrev=False,
            add_help=command.name != "distill",  # it prints every argument of a run itself
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.arguments(subparser)
    return parser
