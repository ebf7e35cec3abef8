"""The commands that train: ``itrd distill``, ``compare``, ``sweep`` and ``shrink``."""

import json
import shlex
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.console import print_json
from itrd_nlp.utils.errors import UserError

TRAINER_DOCS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
NOT_MET = 3  # exit code of `itrd shrink` where no student is what was asked for


def _distill_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a YAML file or a packaged recipe")
    parser.add_argument("--dry_run", action="store_true", help="train two steps in memory, and print the plan")


def _distill(args: Namespace, rest: list[str]) -> None:
    """Run a recipe, or print its plan or the arguments that it takes."""
    wants_help = bool({"-h", "--help"} & set(rest))
    if wants_help or args.recipe is None:
        print("usage: itrd distill RECIPE [--dry_run] [--field value ...]\n")
        print("RECIPE is a YAML file or a name of `itrd recipes`.")
        print("--dry_run loads everything, trains two steps in memory and prints the plan: time, memory, disk.")
        print(f"\n{help_text()}\n{DISTILL.epilog}")
        if not wants_help:
            raise UserError("no recipe: expected a YAML file or a packaged recipe; `itrd recipes` lists them")
        return
    from itrd_nlp.experiments.parsing import parse

    run_args, training_args = parse(args.recipe, rest)  # before what takes seconds to import
    from itrd_nlp.experiments.dry_run import dry_run, summary
    from itrd_nlp.experiments.run import better_baseline, run
    from itrd_nlp.training.record import calibration_table, run_table
    from itrd_nlp.utils.tables import print_table

    if args.dry_run:
        plan = dry_run(run_args, training_args)
        if training_args.process_index == 0:
            print_table(plan.table(args.recipe))
            print(f"\n{summary(plan, run_args, training_args)}")
        return
    record = run(run_args, training_args, args.recipe)
    if training_args.process_index == 0:
        print()
        print_table(run_table(record))
        if record.calibration:
            print()
            print_table(calibration_table(record))
        print(f"\nstudent: {training_args.output_dir}/student")
        if better := better_baseline(record, Path(str(training_args.output_dir))):
            print(f"without distillation it scores as high or higher: {better}")
        print(f"record:  {training_args.output_dir}/record.json")


def help_text() -> str:
    """Describe each argument of a run that this package defines, with its default, and link to Trainer's own."""
    from itrd_nlp.experiments.config import RunArguments
    from itrd_nlp.training.options import DistillationOptions, defaults_of

    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    for title, arguments in (("what is trained on what", RunArguments), ("how it trains", DistillationOptions)):
        group = parser.add_argument_group(title)
        defaults = defaults_of(arguments)
        for field in arguments.__dataclass_fields__.values():
            group.add_argument(
                f"--{field.name}",
                help=field.metadata["help"] + _default(defaults[field.name]),
                choices=field.metadata.get("choices"),
                metavar=None if "choices" in field.metadata else "VALUE",
            )
    trainer = f"Every other field of transformers.TrainingArguments is an argument, too:\n{TRAINER_DOCS}\n"
    return f"{parser.format_help().lstrip()}\n{trainer}"


def _default(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f" (default: {text})"


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
    _distill,
    _distill_arguments,
    subject="RECIPE",
    continues=True,
)


def _add_common_arguments(parser: ArgumentParser, folder: str) -> None:
    """Add the arguments of both commands that train several students."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds to run each recipe with")
    parser.add_argument("--output_dir", type=Path, default=Path(folder), help="records and students of all runs")
    parser.add_argument("--against", help="label of the row to compare against; the undistilled student by default")


def _run_all(args: Namespace, recipes: list[str], rest: list[str], unfair: bool) -> None:
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


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipes",
        nargs="+",
        help="YAML files or packaged recipes; in quotes, one may be followed by arguments of its own, "
        "as 'squad/t6-best --losses.itrd.alpha 2'",
    )
    _add_common_arguments(parser, "runs/compare")
    parser.add_argument("--unfair", action="store_true", help="compare runs that differ in teacher, student or budget")


def _compare(args: Namespace, rest: list[str]) -> None:
    _run_all(args, args.recipes, rest, args.unfair)


COMPARE = Command(
    "compare",
    "several recipes and seeds with one teacher, in one table",
    (
        "itrd compare squad/t6-kd squad/t6-itrd --seeds 0 1 2",
        "itrd compare squad-small/l3-kd squad-small/l3-itrd-kd --against KD --teacher FOLDER --train_file mine.csv "
        "--validation_file held-out.csv",
        "itrd compare squad/t3-itrd squad/t3-kd --train_file mine.csv --validation_file held-out.csv",
    ),
    _compare,
    _compare_arguments,
    subject="RECIPE",
    continues=True,
)


def _sweep_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file or a packaged recipe")
    parser.add_argument("--grid", nargs="+", required=True, help="ARGUMENT=VALUE,VALUE ... e.g. losses.itrd.alpha=1,2")
    _add_common_arguments(parser, "runs/sweep")


def _sweep(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.experiments.compare import grid

    _run_all(args, [f"{shlex.quote(args.recipe)} {point}" for point in grid(args.grid)], rest, unfair=True)


SWEEP = Command(
    "sweep",
    "one recipe at every point of a grid of arguments",
    (
        "itrd sweep squad/t6-best --grid losses.itrd.alpha=1.01,1.5,2",
        "itrd sweep toy/t1-itrd --grid losses.itrd.beta_corr=1,2 learning_rate=1e-3,3e-3 --seeds 0 1",
    ),
    _sweep,
    _sweep_arguments,
    subject="RECIPE",
    continues=True,
)


def _shrink_arguments(parser: ArgumentParser) -> None:
    """Add the options of :func:`itrd_nlp.experiments.shrink.shrink.shrink`, under its names."""
    parser.add_argument("model", help="folder or Hub id of an encoder; without a head it is fine-tuned first")
    parser.add_argument("--train_file", required=True, help="as for itrd distill")
    parser.add_argument("--validation_file", required=True, help="data that the student is chosen on")
    parser.add_argument("--test_file", help="data to score the chosen student and its teacher on, once")
    parser.add_argument("--task", help="by default read off the model's head or the data's columns")
    parser.add_argument(
        "--keep",
        type=float,
        default=0.97,
        help="share of the teacher's score to keep; 0.97 by default",
    )
    parser.add_argument("--max_mib", type=float, help="largest total MiB of the files needed to run the student")
    parser.add_argument(
        "--min_speedup", type=float, help="smallest speed-up over the teacher in PyTorch fp32, one text at a time"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/shrink"), help="runs/shrink by default")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of layers to try")
    parser.add_argument("--hidden_sizes", type=int, nargs="+", help="widths to try")
    parser.add_argument("--vocabularies", type=int, nargs="+", help="vocabulary sizes to try; 0 keeps all")
    parser.add_argument("--threads", type=int, help="CPU threads for timing; torch's setting by default")


def _shrink(args: Namespace, rest: list[str]) -> int:
    """Search, and print the table, the verdict and the result as JSON; 3 where no student meets the goal."""
    from itrd_nlp.experiments.shrink.report import search_table, verdict
    from itrd_nlp.experiments.shrink.shrink import RECORD, shrink
    from itrd_nlp.utils.io import read_json
    from itrd_nlp.utils.tables import print_table

    options = {name: value for name, value in vars(args).items() if name != "command"}
    result = shrink(**options, argv=rest)
    record = read_json(result.folder / RECORD)
    print_table(search_table(record))
    print(f"\n{verdict(record)}\n\nstudent: {result.folder / 'student'}\nONNX:    {result.folder / 'onnx'}")
    values = result._asdict()
    print_json({name: values[name] for name in ("chosen", "kept", "mib", "speedup", "seconds", "candidates")}, None)
    return 0 if result.met else NOT_MET


SHRINK = Command(
    "shrink",
    "make a model as small as it gets while it keeps a share of its score",
    (
        "itrd shrink my-classifier --train_file train.csv --validation_file dev.csv --test_file test.csv",
        "itrd shrink google-bert/bert-base-uncased --train_file train-v1.1.json --validation_file dev-v1.1.json",
        "itrd shrink my-reranker --train_file train.csv --validation_file dev.csv --keep 0.95 --max_mib 20 --bf16 true",
    ),
    _shrink,
    _shrink_arguments,
    subject="MODEL",
    continues=True,
)
