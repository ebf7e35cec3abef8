"""``itrd recipes``: what is packaged."""

from argparse import Namespace

from itrd_nlp.commands.command import Command


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.recipe import recipes

    print("\n".join(recipes()))


RECIPES = Command("recipes", "list the packaged recipes", ("itrd recipes",), run)
