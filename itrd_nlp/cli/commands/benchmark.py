"""``itrd benchmark``: size and speed of models in PyTorch, ONNX and int8."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command, check_parent
from itrd_nlp.utils.errors import UserError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub ids, or what itrd export wrote")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of a text; 32, 128 and 384 by default")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="texts or images at once")
    parser.add_argument("--threads", type=int, help="of one forward; torch's number by default")
    parser.add_argument("--repeats", type=int, default=10, help="timed forwards of each, after two that are not")
    parser.add_argument("--output", type=Path, help="also keep the measurements in this JSON file")
    parser.add_argument("--plot", type=Path, help="also draw them: .svg, or .html with the table")


def run(args: Namespace, rest: list[str]) -> None:
    """Measure the models; print, save and plot the results."""
    from itrd_nlp.experiments.benchmark import benchmark, benchmark_table, named, write_plot
    from itrd_nlp.experiments.evaluation import evaluation_task
    from itrd_nlp.experiments.plots import need_matplotlib
    from itrd_nlp.utils.io import write_json

    for option in ("output", "plot"):
        if (path := getattr(args, option)) is not None:
            check_parent(path, f"--{option}")
    if args.plot is not None:
        if args.plot.suffix not in (".svg", ".html"):
            raise UserError(f"--plot {args.plot}: expected a name that ends in .svg or .html")
        need_matplotlib()  # before measuring, which takes minutes
    task, training_args = evaluation_task(args.models[0], rest)
    options = {name: getattr(args, name) for name in ("lengths", "batches", "threads", "repeats")}
    record = benchmark(named(args.models), task, training_args, **options)
    print(f"\n{benchmark_table(record).markdown()}")
    if args.output is not None:
        write_json(args.output, record)
    if args.plot is not None:
        write_plot(args.plot, record)


BENCHMARK = Command(
    "benchmark",
    "size and speed of models in PyTorch, ONNX and int8, in turns",
    (
        "itrd benchmark runs/t6/student google-bert/bert-base-cased --lengths 128 384 --plot speed.html",
        "itrd benchmark runs/toy/t1-itrd/student --task toy --output speed.json",
    ),
    run,
    arguments,
    subject="MODEL",
)
