"""``itrd sweep``: one recipe at every point of a grid."""

import shlex
from argparse import ArgumentParser, Namespace

from itrd_nlp.cli.command import Command
from itrd_nlp.cli.commands.compare import common_arguments, run_all


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file or a packaged recipe")
    parser.add_argument("--grid", nargs="+", required=True, help="ARGUMENT=VALUE,VALUE ... e.g. losses.itrd.alpha=1,2")
    common_arguments(parser, "runs/sweep")


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.experiments.compare import grid

    run_all(args, [f"{shlex.quote(args.recipe)} {point}" for point in grid(args.grid)], rest, unfair=True)


SWEEP = Command(
    "sweep",
    "one recipe at every point of a grid of arguments",
    (
        "itrd sweep squad/t6-best --grid losses.itrd.alpha=1.01,1.5,2",
        "itrd sweep toy/t1-itrd --grid losses.itrd.beta_corr=1,2 learning_rate=1e-3,3e-3 --seeds 0 1",
    ),
    run,
    arguments,
    subject="RECIPE",
    continues=True,
)
