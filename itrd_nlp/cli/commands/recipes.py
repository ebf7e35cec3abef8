"""``itrd recipes``: what is packaged."""

from argparse import ArgumentParser, Namespace

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("part", nargs="?", default="", help="only those whose name holds this, e.g. squad/")


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.experiments.recipes import recipes
    from itrd_nlp.utils.errors import UserError

    found = [name for name in recipes() if args.part in name]
    if not found:
        folders = sorted({name.partition("/")[0] for name in recipes()})
        raise UserError(f"no recipe's name holds {args.part!r}: expected a part of one, e.g. {', '.join(folders)}")
    print("\n".join(found))


RECIPES = Command("recipes", "list the packaged recipes", ("itrd recipes", "itrd recipes squad/"), run, arguments)
