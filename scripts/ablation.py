"""The study of scripts/ablation.yaml: runs what is not yet there, keeps its records, writes docs/ablation.md.

    python scripts/ablation.py run --teacher FOLDER --train_file train.json --validation_file validation.json
    python scripts/ablation.py page [--check]

A run is a recipe and what one point changes in it. `run` takes any argument of `itrd distill`, continues what was
killed, and may be called twice at once: each call leaves alone what the other is at. `--only 2 3` picks questions by
their numbers.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from itrd_nlp.experiments.compare import compare, folder_of, plan_runs
from itrd_nlp.experiments.fairness import DIGESTS, check_same
from itrd_nlp.experiments.intervals import examples_of
from itrd_nlp.experiments.output_folder import arguments_of
from itrd_nlp.experiments.plots import axes_of
from itrd_nlp.experiments.report import comparison_table, difference_of, mean_std
from itrd_nlp.training.record import Record
from itrd_nlp.utils.console import show_messages
from itrd_nlp.utils.io import write_json
from itrd_nlp.utils.tables import SHORT, markdown_table

ROOT = Path(__file__).resolve().parents[1]
PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "scripts" / "results" / "ablation"
SWEEP = RESULTS.parent / "sweep"
COMPARISON = RESULTS.parent / "comparison"
PAGE = ROOT / "docs" / "ablation.md"


class Question(NamedTuple):
    """One thing that is changed at a time."""

    title: str
    note: str
    points: dict[str, str]  # what a table calls it -> recipe and words


def read_plan() -> tuple[dict[str, Any], list[Question]]:
    """The whole plan, and its questions."""
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    return plan, [Question(q["title"], q.get("note", ""), q["points"]) for q in plan["questions"]]


def kept(point: str, seed: int) -> Path:
    """Where the record of a point lies."""
    return RESULTS / f"{folder_of(point)},seed-{seed}.json"


def run(only: list[int], output: Path, argv: list[str]) -> None:
    """Train the points that have no record yet."""
    plan, questions = read_plan()
    chosen = [q for number, q in enumerate(questions, 1) if not only or number in only]
    points = list(dict.fromkeys(" ".join(p.split()) for q in chosen for p in q.points.values()))
    words = [*plan["arguments"].split(), *argv]
    made, paths = [], {}
    for seed in plan["seeds"]:
        for point in points:
            (each,) = plan_runs([point], [seed], words, output)
            path = kept(point, seed)
            asked = arguments_of(each.run_args, each.training_args)
            before = Record.read(path).arguments if path.is_file() else None
            if before is None or any(before[key] != asked[key] for key in before.keys() & asked.keys()):
                made.append(each)
                paths[str(each.record)] = path
    RESULTS.mkdir(parents=True, exist_ok=True)
    compare(made, True, lambda each, record: write_json(paths[str(each.record)], dataclasses.asdict(record)))


def page() -> str:
    """The page, from the records that are there."""
    plan, questions = read_plan()
    parts = [plan["introduction"].strip(), ""]
    used: dict[Path, Record] = {}
    for number, question in enumerate(questions, 1):
        rows: list[list[str]] = []
        first: list[Record] = []
        for label, point in question.points.items():
            paths = [kept(" ".join(point.split()), seed) for seed in plan["seeds"]]
            records = [used.setdefault(path, Record.read(path)) for path in paths if path.is_file()]
            first = first if rows else records
            cells = [*scores(records), difference(records, first) if rows else ""] if records else ["not run", "", ""]
            rows.append([label, f"`{point}`", *cells])
        columns = ["", "run", *(SHORT[name] for name in ("exact_match", "f1")), "F1 difference to the first row"]
        parts += [f"## {number}. {question.title}", "", markdown_table(columns, rows), ""]
        parts += [question.note.strip(), ""] if question.note else []
    check_same([record for path, record in used.items() if "student=" not in path.name], budget=False)
    if len({tuple(record.digests[what] for what in DIGESTS if what != "student") for record in used.values()}) > 1:
        raise SystemExit("the records are of several teachers or data: expected one; run them again together")
    compared = [Record.read(path) for path in sorted(COMPARISON.glob("*.json"))]
    if compared:
        table = comparison_table(compared, against=plan["comparison"]["against"])
        parts += ["## The methods beside ITRD", "", plan["comparison"]["text"].strip(), "", table.markdown(), ""]
    swept = sweep()
    if swept:
        parts += ["## Robustness to the weights", "", plan["sweep"].strip(), "", comparison_table(swept).markdown(), ""]
        parts += [f"![F1 over {axis}]({picture(axis).name})\n" for axis in axes(swept)]
    commits = sorted({f"{r.commit[:10]}{' with changes' if r.dirty else ''}" for r in used.values() if r.commit})
    devices = sorted({record.device for record in used.values()})
    teacher = {f"{r.metrics['teacher']['exact_match']:.2f} / {r.metrics['teacher']['f1']:.2f}" for r in used.values()}
    parts.append(f"{len(used)} runs; teacher {', '.join(sorted(teacher))}; {'; '.join(devices)}; {', '.join(commits)}.")
    return "\n".join(parts) + "\n"


def sweep() -> list[Record]:
    """The records of `itrd sweep`, in the order of their labels."""
    return sorted((Record.read(path) for path in SWEEP.glob("*.json")), key=lambda record: record.label)


def axes(records: list[Record]) -> list[str]:
    """The arguments that a sweep sets."""
    return list(axes_of(records[0]))


def picture(axis: str) -> Path:
    """The figure of a swept argument."""
    return PAGE.with_name(f"sweep-{axis.rpartition('.')[2]}.svg")


def scores(records: list[Record]) -> list[str]:
    """Mean and deviation of both metrics."""
    return [mean_std([r.metrics["student"][name] for r in records]) for name in ("exact_match", "f1")]


def difference(records: list[Record], first: list[Record]) -> str:
    """Of the F1, over the seeds that both have, with its interval over questions."""
    both = {record.seed for record in records} & {record.seed for record in first}
    some, others = [[r for r in side if r.seed in both] for side in (records, first)]
    return difference_of(examples_of(some, "student"), examples_of(others, "student")) if both else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of questions")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    options, rest = parser.parse_known_args()
    if options.what == "run":
        show_messages()
        run(options.only, options.output_dir, rest)
        return
    text = page()
    if options.check and PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{PAGE.name} is stale: run python scripts/ablation.py page")
    PAGE.write_text(text, encoding="utf-8")
    if swept := sweep():
        from itrd_nlp.experiments.plots import svg, sweeps

        for _, axis, figure in sweeps(swept):
            picture(axis).write_text(svg(figure) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
