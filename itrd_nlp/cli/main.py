"""The entry point ``itrd COMMAND ...``."""

import argparse
import os
import sys
from collections.abc import Sequence

from itrd_nlp.cli.command import build_parser
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.training.interruption import Stopped, stoppable
from itrd_nlp.utils.command_line import underscored
from itrd_nlp.utils.console import console, show_messages
from itrd_nlp.utils.errors import UserError, nearest, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 after a :class:`UserError`, 128 + n after signal n."""
    words = underscored(sys.argv[1:] if argv is None else argv)
    show_messages()
    with console():
        try:
            args, rest = _parse(words)
            with stoppable():
                code = COMMANDS[args.command].run(args, rest) or 0
            if sys.stdout is not None:  # None: it was closed
                sys.stdout.flush()
            return code
        except BrokenPipeError:  # the output goes to a command such as `head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13  # SIGPIPE, which Windows does not name
        except UserError as error:
            print(f"itrd: error: {one_line(error, None)}", file=sys.stderr)
            return 2
        except Stopped as stop:
            advice = "; the same command continues" if COMMANDS[args.command].continues else ""
            print(f"itrd: {stop}{advice}", file=sys.stderr)
            return 128 + stop.number


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a command, and the remaining words, which the commands of runs parse themselves."""
    name, second = [*words, "", ""][:2]
    command = COMMANDS.get(name)
    if name and command is None and not name.startswith("-"):
        raise UserError(f"no command {name!r}: expected one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    if command and command.subject and second.startswith("--") and second != "--help":
        raise UserError(f"{name} {second}: expected `itrd {name} {command.subject} --field value ...`")
    args, rest = build_parser(COMMANDS).parse_known_args(words)
    if rest and not COMMANDS[args.command].subject:
        hint = nearest(rest[0].lstrip("-").partition("=")[0], vars(args))
        raise UserError(f"unrecognized arguments: {' '.join(rest)}; see `itrd {args.command} --help`{hint}")
    return args, rest
