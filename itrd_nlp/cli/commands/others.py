"""The other commands: ``itrd report``, ``recipes``, ``cache``, ``doctor`` and ``completion``."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from itrd_nlp.cli.command import Command, build_parser, check_parent, write_text
from itrd_nlp.utils.errors import UserError, needing

# the shell lists recipes when it completes, so that those of a newer version are there, too
LIST_RECIPES = {
    "bash": '_itrd_recipes() { compgen -W "$(itrd recipes --names 2>/dev/null)" -- "$1"; compgen -f -- "$1"; }',
    "zsh": '_itrd_recipes() { compadd -- ${(f)"$(itrd recipes --names 2>/dev/null)"}; _files }',
}
FORMATS = ("md", "csv", "html")
FILES = ("model", "records", "output", "output_dir", "predictions", "data", "file", "write")  # arguments


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, help="record.json files")
    parser.add_argument(
        "--format", choices=FORMATS, help="by default that of --output, or md; html: one file, with plots"
    )
    parser.add_argument("--comparison", action="store_true", help="one table of all records instead of one for each")
    parser.add_argument("--pairs", action="store_true", help="one table of pairs of networks, beside published scores")
    parser.add_argument("--against", help="with --comparison: label of the row to compare with")
    parser.add_argument("--unfair", action="store_true", help="compare records of different teachers, students or data")
    parser.add_argument("--output", type=Path, help="where the report goes; stdout by default")
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this Markdown file")
    parser.add_argument("--marker", help="name in these markers, itrd report by default: <!-- NAME: begin -->")
    parser.add_argument("--check", action="store_true", help="with --write: change nothing, fail if the file is stale")


def _matches(path: Path) -> list[Path]:
    """A path, or what its wildcards match where the shell, as on Windows, leaves them."""
    below = path.relative_to(path.anchor)
    return [path] if path.exists() else sorted(Path(path.anchor).glob(str(below))) or [path]


def _report(args: Namespace, rest: list[str]) -> None:
    """Print or write the tables of records."""
    from itrd_nlp.experiments.fairness import check_same
    from itrd_nlp.experiments.pairs import pairs_table
    from itrd_nlp.experiments.report import MARKER, comparison_table, section, update
    from itrd_nlp.training.record import Record, run_table

    _check_report(args)
    paths = [match for path in args.records for match in _matches(path)]
    records = [Record.read(path) for path in paths]
    if args.comparison and not args.unfair:
        check_same(records)
    if args.pairs:
        tables = [pairs_table(records, args.unfair)]
    elif args.comparison:
        tables = [comparison_table(records, args.against)]
    else:
        tables = [run_table(record) for record in records]
    if args.write is not None:
        update(args.write, section(tables), args.check, args.marker or MARKER)
        return
    kind = args.format or _suffix(args.output)
    if kind == "html":
        from itrd_nlp.experiments.plots import figures, html

        names = [f"{record.label}, {record.recipe}, seed {record.seed}" for record in records]
        unclear = [name for name, count in Counter(names).items() if count > 1]
        groups = {"": records} if args.comparison else {}
        for name, path, record in () if args.comparison else zip(names, paths, records, strict=True):
            groups[f"{name} ({path}): " if name in unclear else f"{name}: "] = [record]
        drawn = {prefix + title: svgs for prefix, group in groups.items() for title, svgs in figures(group).items()}
        text = html(tables, drawn)
    elif kind == "csv":
        text = "\n".join(table.csv() for table in tables)
    else:
        text = section(tables)
    text = text.rstrip("\n")
    if args.output is None:
        print(text)
    else:
        write_text(args.output, f"{text}\n")


def _suffix(path: Path | None) -> str:
    """The ending of a file's name, ``html``; empty without a file."""
    return "" if path is None else path.suffix.lower()[1:]


def _check_report(args: Namespace) -> None:
    """Raise :class:`UserError` where options do not go together."""
    if args.output is not None:
        check_parent(args.output)
    if args.check and args.write is None:
        raise UserError("report: --check expects --write FILE, the file to compare with")
    if args.unfair and not (args.comparison or args.pairs):
        raise UserError("report: --unfair is for one table of several records; add --comparison or --pairs")
    if args.marker and args.write is None:
        raise UserError("report: --marker expects --write FILE, the file with these markers")
    suffix = _suffix(args.output)
    if args.format and suffix in FORMATS and suffix != args.format:
        raise UserError(f"report: --format {args.format} with --output {args.output}: expected the same; leave one out")
    if args.write and (args.format not in (None, "md") or args.output):
        raise UserError("report: --write puts Markdown into a file; expected it without --format and --output")
    if args.against and not args.comparison:
        raise UserError("report: --against names a row of --comparison; add that")
    if args.pairs and (args.comparison or "html" in (args.format, suffix)):
        raise UserError("report: --pairs makes a table of its own; expected it without --comparison and html")


REPORT = Command(
    "report",
    "tables from records",
    (
        "itrd report runs/t6/record.json",
        "itrd report runs/compare/*/*/record.json --comparison --format html --output report.html",
        "itrd report scripts/results/*.json --write docs/quickstart.md --check",
    ),
    _report,
    _report_arguments,
)


def _recipes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", help="recipes whose name contains this, e.g. squad; by default the groups")
    parser.add_argument("--names", action="store_true", help="names alone, one a line, for scripts")


def _recipes(args: Namespace, rest: list[str]) -> None:
    """Print the groups of recipes, or the recipes whose name holds a word."""
    from itrd_nlp.experiments.recipes import group_lines, recipe_lines, recipes

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
    _recipes,
    _recipes_arguments,
)


def _cache_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, help="as --teacher_cache names it; that of auto by default")
    parser.add_argument("--clear", action="store_true", help="remove all that no run uses at the moment")


def _cache_folder(named: Path | None) -> Path:
    """The folder of cached teacher outputs that the user named; None: that of ``auto``."""
    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER

    if named is not None and not named.is_dir():
        raise UserError(f"{named}: no such folder; expected one that --teacher_cache named")
    return named or AUTO_FOLDER


def _cache(args: Namespace, rest: list[str]) -> None:
    """Print the contents of a folder of cached teacher outputs, or remove them."""
    from itrd_nlp.distillation.cache_folders import clear, entries, gib
    from itrd_nlp.utils.tables import Table

    root = _cache_folder(args.folder)
    if args.clear:
        removed, left = clear(root)
        print(f"removed {len(removed)}, {gib(sum(entry.size for entry in removed))}")
        for entry in left:
            print(f"left {entry.folder}: in use, or another user's")
        return
    folders = entries(root)
    rows = [[entry.folder.name, gib(entry.size), entry.last_used] for entry in folders]
    caption = f"{len(folders)} in {root}, {gib(sum(entry.size for entry in folders))}"
    print(Table(f"{caption}:", ["", "size", "last used"], rows).markdown() if folders else caption)


CACHE = Command(
    "cache",
    "show or remove cached teacher outputs",
    ("itrd cache", "itrd cache runs/cache --clear"),
    _cache,
    _cache_arguments,
)


def _doctor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), help="where runs would be written")
    parser.add_argument(
        "--teacher_cache", help="read all cached teacher outputs and compare checksums: auto, or a folder"
    )


def _doctor(args: Namespace, rest: list[str]) -> int:
    """Print the report; returns 1 where something must be fixed."""
    from huggingface_hub.constants import HF_HOME

    from itrd_nlp.cli import doctor
    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER
    from itrd_nlp.utils.environment import installed

    checks = [*doctor.versions(), *(doctor.devices() if installed("torch") else ())]
    checks += [doctor.disk(args.output_dir, "--output_dir"), doctor.disk(Path(HF_HOME), "HF_HOME")]
    checks += [doctor.disk(AUTO_FOLDER, "--teacher_cache"), doctor.hub()]
    if args.teacher_cache is not None:
        named = None if args.teacher_cache == "auto" else Path(args.teacher_cache).expanduser()
        checks += doctor.cached_outputs(_cache_folder(named))
    print("\n".join(map(str, checks)))
    count = sum(check.must for check in checks)
    print(f"\n{count} to fix" if count else "\nnothing to fix")
    return int(count > 0)


DOCTOR = Command(
    "doctor",
    "check this machine, and say what to fix; exit code 1 if something must be",
    ("itrd doctor", "itrd doctor --output_dir /data/runs", "itrd doctor --teacher_cache auto"),
    _doctor,
    _doctor_arguments,
)


def _completion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=[*LIST_RECIPES], help="the shell that is to complete")


def _completion(args: Namespace, rest: list[str], commands: Mapping[str, Command]) -> None:
    with needing("completion needs shtab", "completion"):
        import shtab
    print(shtab.complete(_complete_parser(commands), args.shell, preamble=LIST_RECIPES[args.shell]))


def _complete_parser(commands: Mapping[str, Command]) -> ArgumentParser:
    """The parser of ``itrd``, in which the commands of runs also have every argument of a run."""
    import shtab

    from itrd_nlp.experiments.parsing import run_parser

    parser = build_parser(commands)
    (subparsers,) = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    for name, subparser in subparsers.choices.items():
        for action in subparser._actions:
            if action.dest in ("recipe", "recipes"):
                action.complete = dict.fromkeys(LIST_RECIPES, "_itrd_recipes")
            elif action.dest in FILES:
                action.complete = shtab.FILE
        for option in run_parser()._actions if commands[name].subject else ():
            word = option.option_strings[0]
            if word not in subparser._option_string_actions:
                subparser.add_argument(word, help=option.help, choices=option.choices)
    return parser


def completion(commands: Mapping[str, Command]) -> Command:
    """The command for a mapping of all commands, to which it may be added itself."""
    return Command(
        "completion",
        "a script with which bash or zsh completes commands, recipes and arguments",
        (
            "itrd completion bash > ~/.local/share/bash-completion/completions/itrd",
            "itrd completion zsh > ~/.zfunc/_itrd",
        ),
        partial(_completion, commands=commands),
        _completion_arguments,
    )
