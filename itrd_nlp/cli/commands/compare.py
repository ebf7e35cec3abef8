"""``itrd compare``: several recipes and seeds, with one teacher."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.errors import UserError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", help="YAML files or packaged recipes")
    common_arguments(parser, "runs/compare")
    parser.add_argument("--unfair", action="store_true", help="compare what differs in teacher, student or budget")


def common_arguments(parser: ArgumentParser, folder: str) -> None:
    """Add the arguments of every command that trains several students."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="of every recipe")
    parser.add_argument("--output_dir", type=Path, default=Path(folder), help="records and students of all runs")
    parser.add_argument("--against", help="label of the row to compare with; the undistilled student by default")


def run(args: Namespace, rest: list[str]) -> None:
    run_all(args, args.recipes, rest, args.unfair)


def run_all(args: Namespace, recipes: list[str], rest: list[str], unfair: bool) -> None:
    """Train the students that are missing, and print one table."""
    from itrd_nlp.experiments.compare import compare, plan_runs
    from itrd_nlp.experiments.report import comparison_table
    from itrd_nlp.utils.tables import print_table

    runs = plan_runs(recipes, args.seeds, rest, args.output_dir)
    labels = [run.run_args.label for run in runs[: len(recipes)]]
    if args.against not in (None, *labels):
        raise UserError(f"--against {args.against!r}: expected one of {labels}")
    records = compare(runs, unfair)
    if runs[0].training_args.process_index == 0:
        print()
        print_table(comparison_table(records, args.against))
        print(f"\nrecords: {args.output_dir}/*/*/record.json")


COMPARE = Command(
    "compare",
    "several recipes and seeds with one teacher, in one table",
    (
        "itrd compare squad/t6-kd squad/t6-itrd --seeds 0 1 2",
        "itrd compare squad-small/l3-kd squad-small/l3-itrd-kd --against KD --output_dir runs/small",
        "itrd compare squad/t3-itrd squad/t3-kd --train_file mine.csv --validation_file held-out.csv",
    ),
    run,
    arguments,
    subject="RECIPE",
    continues=True,
)
