"""``itrd distill``: one recipe."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.errors import UserError

if TYPE_CHECKING:
    from itrd_nlp.experiments.config import RunArguments
    from itrd_nlp.training.arguments import ITRDArguments


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a YAML file or a packaged recipe")
    parser.add_argument("--dry_run", action="store_true", help="train two steps in memory, and print the plan")


def run(args: Namespace, rest: list[str]) -> None:
    """Run a recipe, or print its plan or the arguments that it takes."""
    wants_help = bool({"-h", "--help"} & set(rest))
    if wants_help or args.recipe is None:
        from itrd_nlp.experiments.argument_help import help_text

        print("usage: itrd distill RECIPE [--dry_run] [--field value ...]\n")
        print("RECIPE is a YAML file or a name of `itrd recipes`.")
        print("--dry_run loads everything, trains two steps in memory and prints the plan: time, memory, disk.")
        print(f"\n{help_text()}\n{DISTILL.epilog}")
        if not wants_help:
            raise UserError("no recipe: expected a YAML file or a packaged recipe; `itrd recipes` lists them")
        return
    from itrd_nlp.experiments.parsing import parse

    run_args, training_args = parse(args.recipe, rest)
    if args.dry_run:
        _dry_run(run_args, training_args, args.recipe)
        return
    from itrd_nlp.experiments.run import run as run_recipe
    from itrd_nlp.training.record import calibration_table, run_table
    from itrd_nlp.utils.tables import print_table

    record = run_recipe(run_args, training_args, args.recipe)
    if training_args.process_index == 0:
        print()
        print_table(run_table(record))
        if record.calibration:
            print()
            print_table(calibration_table(record))
        print(f"\nstudent: {training_args.output_dir}/student")
        print(f"record:  {training_args.output_dir}/record.json")


def _dry_run(run_args: "RunArguments", training_args: "ITRDArguments", name: str) -> None:
    from itrd_nlp.experiments.dry_run import dry_run, summary
    from itrd_nlp.utils.tables import print_table

    plan = dry_run(run_args, training_args)
    if training_args.process_index == 0:
        print_table(plan.table(name))
        print(f"\n{summary(plan, run_args, training_args)}")


DISTILL = Command(
    "distill",
    "train teacher, student without and with distillation",
    (
        "itrd distill toy/t1-itrd",
        "itrd distill squad/t6-best --dry_run",
        "itrd distill squad/t6-best --output_dir runs/t6 --seed 1",
        "itrd distill squad/t6-best --losses.itrd.alpha 2 --train_file mine.csv --validation_file held-out.csv",
        "accelerate launch -m itrd_nlp.cli distill squad/t6-best",
    ),
    run,
    arguments,
    subject="RECIPE",
    continues=True,
)
