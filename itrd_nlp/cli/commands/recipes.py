"""``itrd recipes``: list the packaged recipes."""

from argparse import ArgumentParser, Namespace

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", help="list those whose name holds this, e.g. squad; without: the groups")
    parser.add_argument("--names", action="store_true", help="names alone, one a line, for scripts")


def run(args: Namespace, rest: list[str]) -> None:
    """Print the groups of recipes, or the recipes whose name holds a word."""
    from itrd_nlp.experiments.catalogue import group_lines, recipe_lines
    from itrd_nlp.experiments.recipes import recipes
    from itrd_nlp.utils.errors import UserError

    if args.word is None and not args.names:
        print("\n".join([*group_lines(), "", "`itrd recipes WORD` lists the recipes whose name contains WORD."]))
        return
    names = [name for name in recipes() if (args.word or "") in name]
    if not names:
        folders = sorted({name.partition("/")[0] for name in recipes()})
        raise UserError(f"no recipe's name holds {args.word!r}: expected a part of one, e.g. {', '.join(folders)}")
    print("\n".join(names if args.names else recipe_lines(names)))


RECIPES = Command(
    "recipes",
    "list the packaged recipes, by group or by a part of their name",
    ("itrd recipes", "itrd recipes squad", "itrd recipes squad-small/l3-first --names"),
    run,
    arguments,
)
