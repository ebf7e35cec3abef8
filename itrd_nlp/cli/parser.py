"""The parser of ``itrd``, built from its commands."""

import argparse
from collections.abc import Mapping
from importlib.metadata import version
from typing import NoReturn

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Raise errors in one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("itrd").strip()
        reason = f"{command}: {message}" if command else "expected `itrd COMMAND ...`"
        raise UserError(f"{reason}; see `{self.prog} --help`")


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Build the parser of a command line with these commands."""
    parser = _Parser(
        "itrd",
        description="Distil an encoder and measure what it kept.",
        epilog="\n  ".join(["examples:", *(command.examples[0] for command in commands.values())]),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(subparser)
    return parser
