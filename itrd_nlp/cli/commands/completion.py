"""``itrd completion``: a shell script that completes commands, recipes and arguments."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from functools import partial

from itrd_nlp.cli.command import Command
from itrd_nlp.cli.parser import build_parser
from itrd_nlp.utils.errors import UserError

# the shell lists recipes when it completes, so that those of a newer version are there, too
RECIPES = {
    "bash": '_itrd_recipes() { compgen -W "$(itrd recipes --names 2>/dev/null)" -- "$1"; compgen -f -- "$1"; }',
    "zsh": '_itrd_recipes() { compadd -- ${(f)"$(itrd recipes --names 2>/dev/null)"}; _files }',
}
FILES = ("model", "records", "output", "output_dir", "predictions", "data", "file", "write")  # arguments


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=[*RECIPES], help="the shell that is to complete")


def run(args: Namespace, rest: list[str], commands: Mapping[str, Command]) -> None:
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab: pip install 'itrd_nlp[completion]'") from None
    print(shtab.complete(_complete_parser(commands), args.shell, preamble=RECIPES[args.shell]))


def _complete_parser(commands: Mapping[str, Command]) -> ArgumentParser:
    """The parser of ``itrd``, in which the commands of runs also have every argument of a run."""
    import shtab

    from itrd_nlp.experiments.parsing import run_parser

    parser = build_parser(commands)
    (subparsers,) = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    for name, subparser in subparsers.choices.items():
        for action in subparser._actions:
            if action.dest in ("recipe", "recipes"):
                action.complete = dict.fromkeys(RECIPES, "_itrd_recipes")
            elif action.dest in FILES:
                action.complete = shtab.FILE
        for option in run_parser()._actions if commands[name].subject else ():
            word = option.option_strings[0]
            if word not in subparser._option_string_actions:
                subparser.add_argument(word, help=option.help, choices=option.choices)
    return parser


def completion(commands: Mapping[str, Command]) -> Command:
    """The command for a mapping of all commands, to which it may be added itself."""
    return Command(
        "completion",
        "a script with which bash or zsh completes commands, recipes and arguments",
        (
            "itrd completion bash > ~/.local/share/bash-completion/completions/itrd",
            "itrd completion zsh > ~/.zfunc/_itrd",
        ),
        partial(run, commands=commands),
        arguments,
    )
