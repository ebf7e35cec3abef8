"""What the studies of this folder share: runs that have no record yet, and tables in which one thing changes."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from itrd_nlp.experiments.compare import Run, compare, folder_of, plan_runs
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.intervals import examples_of
from itrd_nlp.experiments.output_folder import arguments_of
from itrd_nlp.experiments.report import difference_of, mean_std
from itrd_nlp.training.record import Record, short_commit
from itrd_nlp.utils.io import write_json
from itrd_nlp.utils.tables import markdown_table, metric_title

METRICS = ("exact_match", "f1")


class Question(NamedTuple):
    """One thing that is changed at a time."""

    title: str
    note: str
    points: dict[str, str]  # what a table calls it -> recipe and words


def questions_of(plan: Mapping[str, Any]) -> list[Question]:
    """The questions of a plan; a point is written on one line."""
    return [
        Question(q["title"], q.get("note", "").strip(), {k: " ".join(v.split()) for k, v in q["points"].items()})
        for q in plan["questions"]
    ]


def record_path(results: Path, point: str, seed: int) -> Path:
    """Where the record of a point lies."""
    return results / f"{folder_of(point)},seed-{seed}.json"


def train_missing(
    points: Sequence[str],
    seeds: Sequence[int],
    words: Sequence[str],
    output: Path,
    results: Path,
    teacher: str | None = None,
) -> None:
    """Train the points that have no record of these arguments yet.

    Args:
        output: folder of the runs.
        results: folder of their records.
        teacher: digest of its weights; records of another one are replaced. None: records of any teacher stay.
    """
    runs = {}
    for seed, point in itertools.product(seeds, points):
        (runs[record_path(results, point, seed)],) = plan_runs([point], [seed], words, output)
    train_runs(runs, teacher)


def train_runs(runs: Mapping[Path, Run], teacher: str | None = None) -> None:
    """:func:`train_missing` for runs; the keys are the paths of their records."""
    missing = {str(run.record): path for path, run in runs.items() if not has_record(path, run, teacher)}
    for path in missing.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if missing:
        todo = [run for run in runs.values() if str(run.record) in missing]
        compare(todo, True, lambda run, record: write_json(missing[str(run.record)], dataclasses.asdict(record)))


def has_record(path: Path, run: Run, teacher: str | None) -> bool:
    """Whether a record was made with a teacher, and with the arguments of a run as far as it knows them.

    A record of an earlier version may lack the ``baseline_training`` of a baseline that is not trained anyway.
    """
    if not path.is_file():
        return False
    record, asked = Record.read(path), arguments_of(run.run_args, run.training_args)
    unset = {f.name for f in dataclasses.fields(RunArguments) if f.default is None}  # have no entry
    keys = (record.arguments.keys() & asked.keys()) | unset
    keys -= set() if run.run_args.baseline else {"baseline_training"}
    alike = all(record.arguments.get(key) == asked.get(key) for key in keys)
    return alike and teacher in (None, record.digests.get("teacher"))


def question_section(
    number: int, question: Question, read: Callable[[str], list[Record]], groups: Sequence[int] | None = None
) -> list[str]:
    """A question as lines of Markdown: its points, each with its difference to the first.

    Args:
        read: the records of a point, one for each seed.
        groups: for each validation question that of others that are alike, which intervals draw together.
    """
    rows: list[list[str]] = []
    first: list[Record] = []
    for label, point in question.points.items():
        records = read(point)
        first = first if rows else records
        to_first = difference(records, first, groups) if rows else ""
        cells = [*scores(records), to_first] if records else ["not run", "", ""]
        rows.append([label, f"`{point}`", *cells])
    columns = ["", "run", *(metric_title(name) for name in METRICS), "F1 difference to the first row"]
    note = [question.note, ""] if question.note else []
    return [f"## {number}. {question.title}", "", markdown_table(columns, rows), "", *note]


def write_page(page: Path, text: str, command: str, check: bool) -> None:
    """Write a generated page; with ``check``, only fail where it is stale, and say which command mends it."""
    if check and page.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{page.name} is stale: run {command}")
    page.write_text(text, encoding="utf-8")


def scores(records: Sequence[Record]) -> list[str]:
    """Mean and deviation of both metrics."""
    return [mean_std([record.metrics["student"][name] for record in records]) for name in METRICS]


def difference(some: Sequence[Record], others: Sequence[Record], groups: Sequence[int] | None = None) -> str:
    """Of the F1, over the seeds that both have, with its 95 % interval over questions, or over groups of them."""
    both = {record.seed for record in some} & {record.seed for record in others}
    sides = [[record for record in side if record.seed in both] for side in (some, others)]
    return difference_of(*[examples_of(side, "student") for side in sides], groups) if both else ""


def origins(records: Sequence[Record]) -> str:
    """Number, teacher, device and commits of records."""
    commits = sorted({short_commit(r.commit, r.dirty) for r in records if r.commit})
    devices = sorted({record.device for record in records})
    teachers = {f"{r.metrics['teacher']['exact_match']:.2f} / {r.metrics['teacher']['f1']:.2f}" for r in records}
    return f"{len(records)} runs; teacher {', '.join(sorted(teachers))}; {'; '.join(devices)}; {', '.join(commits)}."
