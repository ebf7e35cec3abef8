"""The parser of ``itrd``, made of its commands."""

import argparse
from collections.abc import Mapping
from importlib.metadata import version
from typing import NoReturn

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Errors in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("itrd").strip()
        told = f"{command}: {message}" if command else "expected `itrd COMMAND ...`"
        raise UserError(f"{told}; see `{self.prog} --help`")


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of a command line with these commands."""
    first_examples = "\n  ".join(["examples:", *(command.examples[0] for command in commands.values())])
    parser = _Parser(
        "itrd",
        description="Distil an encoder, and prove what was kept.",
        epilog=first_examples,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"itrd_nlp {version('itrd_nlp')}")
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands.values():
        more = "; any `--field value` of `itrd distill --help` may follow" if command.place else ""
        sub = added.add_parser(
            command.name,
            help=command.summary,
            description=command.summary + more,
            epilog=command.epilog,
            allow_abbrev=False,
            add_help=command.name != "distill",  # whose help lists every argument of a run
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(sub)
    return parser
