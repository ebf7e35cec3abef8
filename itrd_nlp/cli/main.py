"""The command line: ``itrd COMMAND ...``, with the commands of :mod:`itrd_nlp.cli.commands`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.cli.parser import build_parser
from itrd_nlp.training.interruption import Stopped, stoppable
from itrd_nlp.utils.console import console, show_messages
from itrd_nlp.utils.errors import UserError, nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a wrong input is one line on stderr and exit code 2, a signal 128 and its number."""
    words = list(sys.argv[1:] if argv is None else argv)
    show_messages()
    with console():
        try:
            args, rest = _parse(words)
            with stoppable():
                code = COMMANDS[args.command].run(args, rest) or 0
            if sys.stdout is not None:  # it was closed
                sys.stdout.flush()
            return code
        except BrokenPipeError:  # whoever read the output has enough of it, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except UserError as error:
            print(f"itrd: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except Stopped as stop:
            on = "; the same command continues" if COMMANDS[args.command].continues else ""
            print(f"itrd: {stop}{on}", file=sys.stderr)
            return 128 + stop.number


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's arguments, and the other words: those of a run, for the commands that take them."""
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        raise UserError(f"no command {words[0]!r}: expected one of {', '.join(COMMANDS)}{nearest(words[0], COMMANDS)}")
    first = COMMANDS[words[0]].place if words and words[0] in COMMANDS else ""
    if first and words[1:] and words[1].startswith("--") and words[1] != "--help":
        raise UserError(f"{words[0]} {words[1]}: expected `itrd {words[0]} {first} --field value ...`")
    args, rest = build_parser(COMMANDS).parse_known_args(words)
    if rest and not COMMANDS[args.command].place:
        hint = nearest(rest[0].lstrip("-").partition("=")[0], vars(args))
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; see `itrd {args.command} --help`{hint}")
    return args, rest
