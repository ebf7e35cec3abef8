"""The command line: ``itrd distill | compare | sweep | evaluate | score | predict | report | recipes``."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from itrd_nlp.errors import UserError
from itrd_nlp.interruption import Stopped, stoppable

EPILOG = """examples:
  itrd distill toy/t1-itrd
  itrd distill squad/t6-itrd --output_dir runs/t6 --seed 1
  accelerate launch -m itrd_nlp.cli distill squad/t6-itrd
  itrd compare squad/t6-kd squad/t6-itrd --seeds 0 1 2
  itrd sweep squad/t6-itrd --grid losses.itrd.alpha=1.01,1.5,2
  itrd evaluate runs/t6/student --task squad --validation_file dev-v1.1.json
  itrd predict runs/t6/student --question "Who wrote it?" --context "Ada wrote it."
"""

PLACES = {"distill": "RECIPE", "compare": "RECIPE", "sweep": "RECIPE", "evaluate": "MODEL"}  # they take any argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a wrong input is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        first = PLACES.get(words[0] if words else "")
        if first and words[1:] and words[1].startswith("--") and words[1] != "--help":
            raise UserError(f"{words[0]} {words[1]}: expected `itrd {words[0]} {first} --field value ...`")
        args, rest = _parser().parse_known_args(words)
        if rest and args.command not in PLACES:
            raise UserError(f"unrecognized arguments: {' '.join(rest)}; see `itrd {args.command} --help`")
        with stoppable():
            args.function(args, rest)
    except UserError as error:
        print(f"itrd: error: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if os.environ.get("ITRD_TRACEBACK"):
            raise
        line = " ".join(str(error).split())
        print(f"itrd: error: {type(error).__name__}: {line} (ITRD_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"itrd: {stop}; the same command continues", file=sys.stderr)
        return 0 if stop.number == signal.SIGTERM else 128 + stop.number
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "itrd", description="Distil an encoder, and prove what was kept.", epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: object, summary: str, own_help: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, add_help=own_help, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    distil = command("distill", _distill, "train teacher, student without and with distillation", own_help=False)
    distil.add_argument("recipe", nargs="?", help="a YAML file or a packaged recipe")
    distil.add_argument("-h", "--help", action="store_true", dest="show_help")
    compare = command("compare", _compare, "several recipes and seeds with one teacher, in one table")
    compare.add_argument("recipes", nargs="+", help="YAML files or packaged recipes")
    sweep = command("sweep", _sweep, "one recipe at every point of a grid of arguments")
    sweep.add_argument("recipe", help="a YAML file or a packaged recipe")
    sweep.add_argument("--grid", nargs="+", required=True, help="ARGUMENT=VALUE,VALUE ... e.g. losses.itrd.alpha=1,2")
    for sub, folder in ((compare, "runs/compare"), (sweep, "runs/sweep")):
        sub.add_argument("--seeds", nargs="+", type=int, default=[42])
        sub.add_argument("--output_dir", type=Path, default=Path(folder), help="records and students of all runs")
        sub.add_argument("--against", help="label of the row to compare with; the undistilled student by default")
    compare.add_argument("--unfair", action="store_true", help="compare what differs in teacher, student or budget")
    evaluate = command("evaluate", _evaluate, "score a saved model on a task's validation data")
    evaluate.add_argument("model", help="folder, Hub id, or a name of timm")
    evaluate.add_argument("--checkpoint", help="weights of a model of timm, .safetensors or .pth")
    score = command("score", _score, "EM and F1 of SQuAD-format predictions")
    score.add_argument("--predictions", required=True, type=Path, help="JSON of question id to answer text")
    score.add_argument("--data", required=True, help="SQuAD JSON, CSV, parquet or JSON lines")
    predict = command("predict", _predict, "answer one question, or every question of a file")
    _predict_arguments(predict)
    _report_arguments(command("report", _report, "tables from records"))
    command("recipes", _recipes, "list the packaged recipes")
    return parser


def _predict_arguments(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", help="folder or Hub id")
    predict.add_argument("--question")
    predict.add_argument("--context")
    predict.add_argument("--file", help="SQuAD JSON, CSV, parquet or JSON lines with questions and contexts")
    predict.add_argument("--output", type=Path, help="where the predictions of --file go; stdout by default")
    predict.add_argument("--allow_no_answer", action="store_true", help="SQuAD 2: the text may hold no answer")


def _report_arguments(report: argparse.ArgumentParser) -> None:
    report.add_argument("records", nargs="+", type=Path, help="record.json files")
    report.add_argument("--format", choices=["md", "csv", "html"], default="md", help="html: one file, with plots")
    report.add_argument("--comparison", action="store_true", help="one table of all records instead of one for each")
    report.add_argument("--pairs", action="store_true", help="one table of pairs of networks, beside published scores")
    report.add_argument("--against", help="with --comparison: label of the row to compare with")
    report.add_argument("--unfair", action="store_true", help="compare records of different teachers, students or data")
    report.add_argument("--output", type=Path, help="where the report goes; stdout by default")
    report.add_argument("--write", type=Path, help="put the tables between the markers of this Markdown file")
    report.add_argument("--marker", default="itrd report", help="name in these markers: <!-- NAME: begin -->")
    report.add_argument("--check", action="store_true", help="with --write: only fail where the file is stale")


def _distill(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.parsing import help_text, parse

    if args.show_help or args.recipe is None:
        print("usage: itrd distill RECIPE [--field value ...]\n\nRECIPE is a YAML file or a name of `itrd recipes`.")
        print(help_text())
        if not args.show_help:
            raise UserError("no recipe: expected a YAML file or a packaged recipe; `itrd recipes` lists them")
        return
    run_args, training_args = parse(args.recipe, rest)
    from itrd_nlp.report import run_table
    from itrd_nlp.run import run

    record = run(run_args, training_args, args.recipe)
    if training_args.process_index == 0:
        print(f"\n{run_table(record).markdown()}\n\nstudent: {training_args.output_dir}/student")
        print(f"record:  {training_args.output_dir}/record.json")


def _compare(args: argparse.Namespace, rest: list[str]) -> None:
    _run_all(args, args.recipes, rest, args.unfair)


def _sweep(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.compare import grid

    _run_all(args, [f"{args.recipe} {point}" for point in grid(args.grid)], rest, unfair=True)


def _run_all(args: argparse.Namespace, recipes: list[str], rest: list[str], unfair: bool) -> None:
    from itrd_nlp.compare import compare, plan_runs
    from itrd_nlp.report import comparison_table

    runs = plan_runs(recipes, args.seeds, rest, args.output_dir)
    labels = [run.run_args.label for run in runs[: len(recipes)]]
    if args.against not in (None, *labels):
        raise UserError(f"--against {args.against!r}: expected one of {labels}")
    records = compare(runs, unfair)
    if runs[0].training_args.process_index == 0:
        print(f"\n{comparison_table(records, args.against).markdown()}\n\nrecords: {args.output_dir}/*/*/record.json")


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.parsing import parse
    from itrd_nlp.run import evaluate_saved

    run_args, training_args = parse(None, ["--teacher", args.model, *rest])
    if args.checkpoint:
        run_args.teacher = {"timm": args.model, "checkpoint": args.checkpoint}
    metrics = evaluate_saved(run_args, training_args)
    if training_args.process_index == 0:
        print(json.dumps(metrics, indent=1))


def _score(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.text.squad_data import load_squad
    from itrd_nlp.text.squad_files import read_predictions
    from itrd_nlp.text.squad_metric import squad_scores

    predictions = read_predictions(args.predictions)
    _, data, _ = load_squad(validation_file=args.data)
    assert data is not None  # a file was named
    scores = squad_scores(predictions, {row["id"]: row["answers"]["text"] for row in data})
    print(
        "\n".join(
            f"{name}: {value:.3f}" if name != "total" else f"{name}: {value:.0f}" for name, value in scores.items()
        )
    )


def _predict(args: argparse.Namespace, rest: list[str]) -> None:
    single = args.question is not None or args.context is not None
    if single == (args.file is not None) or (single and (args.question is None or args.context is None)):
        raise UserError("predict: expected either --question and --context, or --file")
    from itrd_nlp.text.answering import answer, answer_many
    from itrd_nlp.text.squad_data import read_questions

    if single:
        found = answer(args.model, args.question, args.context, allow_no_answer=args.allow_no_answer)
        finite = {k: v if isinstance(v, str | int) or math.isfinite(v) else None for k, v in found._asdict().items()}
        print(json.dumps(finite, ensure_ascii=False))
        return
    if args.output is not None:
        _check_parent(args.output)
    data = read_questions(args.file)
    answers = answer_many(args.model, data["question"], data["context"], allow_no_answer=args.allow_no_answer)
    text = json.dumps(
        {key: found.text for key, found in zip(data["id"], answers, strict=True)}, ensure_ascii=False, indent=1
    )
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text + "\n", encoding="utf-8")


def _report(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.compare import check_same
    from itrd_nlp.pairs import pairs_table
    from itrd_nlp.record import Record
    from itrd_nlp.report import comparison_table, html, run_table, section, update

    if args.check and args.write is None:
        raise UserError("report: --check expects --write FILE, the file to compare with")
    if args.write and (args.format != "md" or args.output):
        raise UserError("report: --write puts Markdown into a file; expected it without --format and --output")
    if args.against and not args.comparison:
        raise UserError("report: --against names a row of --comparison; add that")
    if args.pairs and (args.comparison or args.format == "html"):
        raise UserError("report: --pairs makes a table of its own; expected it without --comparison and html")
    records = [Record.read(path) for path in args.records]
    if args.comparison and not args.unfair:
        check_same(records)
    if args.pairs:
        tables = [pairs_table(records, args.unfair)]
    elif args.comparison:
        tables = [comparison_table(records, args.against)]
    else:
        tables = [run_table(record) for record in records]
    if args.write is not None:
        update(args.write, section(tables), args.check, args.marker)
        return
    if args.format == "html":
        from itrd_nlp.plots import figures

        if args.comparison:
            drawn = figures(records)
        else:
            drawn = {f"{r.recipe}, seed {r.seed}: {title}": f for r in records for title, f in figures([r]).items()}
        text = html(tables, drawn)
    else:
        text = "\n".join(table.csv() for table in tables) if args.format == "csv" else section(tables)
    if args.output is None:
        print(text.rstrip("\n"))
    else:
        _check_parent(args.output)
        args.output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")


def _recipes(args: argparse.Namespace, rest: list[str]) -> None:
    from itrd_nlp.recipe import recipes

    print("\n".join(recipes()))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(code)  # a gloo process group may abort while Python tears down
    sys.exit(code)
