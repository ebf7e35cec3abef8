"""``itrd report``: tables and plots of records."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command, check_parent, write_text
from itrd_nlp.utils.errors import UserError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record.json files")
    parser.add_argument("--format", choices=["md", "csv", "html"], default="md", help="html: one file, with plots")
    parser.add_argument("--comparison", action="store_true", help="one table of all records instead of one for each")
    parser.add_argument("--pairs", action="store_true", help="one table of pairs of networks, beside published scores")
    parser.add_argument("--against", help="with --comparison: label of the row to compare with")
    parser.add_argument("--unfair", action="store_true", help="compare records of different teachers, students or data")
    parser.add_argument("--output", type=Path, help="where the report goes; stdout by default")
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this Markdown file")
    parser.add_argument("--marker", default="itrd report", help="name in these markers: <!-- NAME: begin -->")
    parser.add_argument("--check", action="store_true", help="with --write: only fail where the file is stale")


def run(args: Namespace, rest: list[str]) -> None:
    """Print or write the tables of records."""
    from itrd_nlp.experiments.fairness import check_same
    from itrd_nlp.experiments.pairs import pairs_table
    from itrd_nlp.experiments.report import comparison_table, section, update
    from itrd_nlp.training.record import Record, run_table

    _check(args)
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
        from itrd_nlp.experiments.plots import figures
        from itrd_nlp.experiments.report_page import html

        if args.comparison:
            drawn = figures(records)
        else:
            drawn = {
                f"{r.label}, {r.recipe}, seed {r.seed}: {title}": f
                for r in records
                for title, f in figures([r]).items()
            }
        text = html(tables, drawn)
    elif args.format == "csv":
        text = "\n".join(table.csv() for table in tables)
    else:
        text = section(tables)
    text = text.rstrip("\n")
    if args.output is None:
        print(text)
    else:
        write_text(args.output, f"{text}\n")


def _check(args: Namespace) -> None:
    """Raise :class:`UserError` where options do not go together."""
    if args.output is not None:
        check_parent(args.output)
    if args.check and args.write is None:
        raise UserError("report: --check expects --write FILE, the file to compare with")
    if args.unfair and not (args.comparison or args.pairs):
        raise UserError("report: --unfair is for one table of several records; add --comparison or --pairs")
    if args.write and (args.format != "md" or args.output):
        raise UserError("report: --write puts Markdown into a file; expected it without --format and --output")
    if args.against and not args.comparison:
        raise UserError("report: --against names a row of --comparison; add that")
    if args.pairs and (args.comparison or args.format == "html"):
        raise UserError("report: --pairs makes a table of its own; expected it without --comparison and html")


REPORT = Command(
    "report",
    "tables from records",
    (
        "itrd report runs/t6/record.json",
        "itrd report runs/compare/*/*/record.json --comparison --format html --output report.html",
        "itrd report scripts/results/*.json --write docs/quickstart.md --check",
    ),
    run,
    arguments,
)
