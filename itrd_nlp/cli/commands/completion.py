"""``itrd completion``: what makes a shell complete commands, recipes and every argument."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from functools import partial

from itrd_nlp.cli.command import Command
from itrd_nlp.cli.parser import build_parser
from itrd_nlp.utils.errors import UserError

# recipes are listed when they are asked for, so that those of a newer version, and files, complete too
BASH = '_itrd_recipes() { compgen -W "$(itrd recipes --names 2>/dev/null)" -- "$1"; compgen -f -- "$1"; }'
ZSH = '_itrd_recipes() { compadd -- ${(f)"$(itrd recipes --names 2>/dev/null)"}; _files }'


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell that is to complete")


def run(args: Namespace, rest: list[str], known: Mapping[str, Command]) -> None:
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab: pip install 'itrd_nlp[completion]'") from None
    print(shtab.complete(completed_parser(known), args.shell, preamble={"bash": BASH, "zsh": ZSH}[args.shell]))


def completed_parser(known: Mapping[str, Command]) -> ArgumentParser:
    """The parser of ``itrd`` in which the commands that train also know every argument of a run."""
    import shtab

    from itrd_nlp.experiments.parsing import run_parser

    parser = build_parser(known)
    (commands,) = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    for name, sub in commands.choices.items():
        for action in sub._actions:
            if action.dest in ("recipe", "recipes"):
                action.complete = {"bash": "_itrd_recipes", "zsh": "_itrd_recipes"}
            elif action.dest in ("model", "records", "output", "output_dir", "predictions", "data", "file", "write"):
                action.complete = shtab.FILE
        if known[name].place:
            for option in run_parser()._actions:
                word = option.option_strings[0]
                if word not in sub._option_string_actions:
                    sub.add_argument(word, help=option.help, choices=option.choices)
    return parser


def completion(others: Mapping[str, Command]) -> Command:
    """The command, which completes itself beside the others."""
    known = {**others}
    known["completion"] = Command(
        "completion",
        "what makes bash or zsh complete commands, recipes and arguments",
        (
            "itrd completion bash > ~/.local/share/bash-completion/completions/itrd",
            "itrd completion zsh > ~/.zfunc/_itrd",
        ),
        partial(run, known=known),
        arguments,
    )
    return known["completion"]
