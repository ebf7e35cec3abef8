"""Write docs/base.md, and the table of README.md, from the records of scripts/base.py.

python scripts/base_page.py [--check | --estimate]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import base
import numpy as np
from base import ARTICLES, DEPLOYED, LATENCY, PLAN, ROOT, SIZES, baseline_name, records, size_of
from studies import METRICS, question_section, questions_of, record_path, write_page

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.intervals import Examples
from itrd_nlp.experiments.report import difference_of, mean_std, update
from itrd_nlp.training.record import Record, origin
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.tables import markdown_table

PAGE, README, MARKER = ROOT / "docs" / "base.md", ROOT / "README.md", "base study"
NOT_SCORED = ["not scored", "", "", ""]
ITRD = ("ITRD (L_corr)", "ITRD (paper)")  # labels; the others are rivals


class Row(NamedTuple):
    """A method at one size, over its seeds."""

    label: str
    names: list[str]  # of the scores out of domain, one for each seed
    records: list[Record]
    role: str = "student"

    @property
    def seeds(self) -> list[int]:
        return [record.seed for record in self.records]

    def examples(self, split: str, seeds: Sequence[int]) -> Examples:
        """The F1 of each question, for some of the seeds."""
        of = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        if split == "test":
            values = [test_scores(self.names[i])["f1"] for i in of]
        else:
            values = [self.records[i].examples[self.role]["f1"] for i in of]
        return Examples(np.array(values), "f1", [frozenset({split})] * len(of))

    def is_scored(self, split: str) -> bool:
        return split != "test" or all(test_file(name).is_file() for name in self.names)

    def scores(self, split: str, metric: str) -> list[float]:
        if split == "test":
            return [test_scores(name)["metrics"][metric] for name in self.names]
        return [record.metrics[self.role][metric] for record in self.records]


def test_file(name: str) -> Path:
    return base.RESULTS / "test" / f"{name}.json"


def test_scores(name: str) -> dict[str, Any]:
    return read_json(test_file(name))


def rows_of(size: str) -> list[Row]:
    """The rows of a table: the student without distillation, then the methods by their F1."""
    of_recipes = {
        path: record for path, record in records().items() if size_of(record) == size and "=" not in path.stem
    }
    by_seed = {record.seed: record for record in of_recipes.values()}
    if not by_seed:
        return []
    plain = Row("undistilled", [baseline_name(r) for r in by_seed.values()], [*by_seed.values()], "baseline")
    methods = [
        Row(
            label,
            [p.stem for p, r in of_recipes.items() if r.label == label],
            [r for r in of_recipes.values() if r.label == label],
        )
        for label in dict.fromkeys(record.label for record in of_recipes.values())
    ]
    return [plain, *sorted(methods, key=lambda row: -float(np.mean(row.scores("validation", "f1"))))]


def best_rival(rows: Sequence[Row]) -> Row:
    """The highest F1 of all rows but ITRD's."""
    rivals = [row for row in rows if row.label not in ITRD]
    return max(rivals, key=lambda row: float(np.mean(row.scores("validation", "f1"))))


def difference(row: Row, best: Row, split: str) -> str:
    """The difference in F1 over common seeds, with its interval by article; empty of the best rival itself."""
    both = [seed for seed in row.seeds if seed in best.seeds]
    sides = [side.examples(split, both) for side in (row, best)]
    return "" if row is best else difference_of(*sides, read_json(base.RESULTS / ARTICLES)[split])


def quality_table(size: str) -> str:
    """EM and F1 on both files, and each row's difference to the best rival."""
    rows = rows_of(size)
    best = best_rival(rows)
    teacher = {"validation": rows[0].records[0].metrics["teacher"]}
    if test_file("teacher").is_file():
        teacher["test"] = test_scores("teacher")["metrics"]
    columns, cells = ["", "seeds"], [["teacher", "1"]]
    for split, scores in teacher.items():
        of_split = "" if split == "validation" else ", new_wiki"
        columns += [f"EM{of_split}", f"F1{of_split}", "of the teacher, %", f"F1 difference to {best.label}"]
        cells[0] += [f"{scores['exact_match']:.2f}", f"{scores['f1']:.2f}", "100", ""]
    for row in rows:
        line = [row.label, str(len(row.seeds))]
        for split, scores in teacher.items():
            if not (row.is_scored(split) and best.is_scored(split)):
                line += NOT_SCORED
                continue
            f1 = row.scores(split, "f1")
            line += [mean_std(row.scores(split, "exact_match")), mean_std(f1)]
            line += [f"{100 * np.mean(f1) / scores['f1']:.1f}", difference(row, best, split)]
        cells.append(line)
    return markdown_table(columns, cells)


def readme_table() -> str:
    """The rows of all sizes, on the validation file alone."""
    lines: list[list[str]] = []
    for size, title in SIZES.items():
        rows = rows_of(size)
        for row in rows:
            first = row.records[0]
            teacher = first.metrics["teacher"]
            if not lines:
                scores = [f"{teacher[name]:.2f}" for name in METRICS]
                lines.append(["teacher", "12", "1", *scores, "", "", f"{first.parameters['teacher']:,}"])
            label = "student without distillation" if row.role == "baseline" else row.label
            values = [row.scores("validation", name) for name in METRICS]
            share = f"{100 * np.mean(values[1]) / teacher['f1']:.1f}"
            line = [label, title.partition(" ")[0], str(len(row.seeds)), *map(mean_std, values), share]
            line += [difference(row, best_rival(rows), "validation"), f"{first.parameters[row.role]:,}"]
            lines.append(line)
    columns = ["", "layers", "seeds", "EM", "F1", "of the teacher, %", "F1 difference to the best rival", "parameters"]
    return markdown_table(columns, lines)


def cost_table(size: str) -> str:
    """What each student's training and its int8 model take."""
    deployed = read_json(base.RESULTS / DEPLOYED) if (base.RESULTS / DEPLOYED).is_file() else {}
    lines = []
    for row in rows_of(size):
        first = row.records[0]
        values = [
            [getattr(r, field)[row.role] for r in row.records] for field in ("seconds", "step_seconds", "peak_mib")
        ]
        seconds, step, peak = [float(np.median(each)) for each in values]
        name = baseline_name(first) if row.role == "baseline" else row.names[0]
        exported = deployed.get(name)
        line = [row.label, f"{first.parameters[row.role]:,}", f"{seconds:.0f}", f"{step:.2f}", f"{peak:.0f}"]
        if deployed:
            line += [f"{exported['metrics']['f1']:.2f}", f"{exported['mib']:.1f}"] if exported else ["not measured", ""]
        lines.append(line)
    columns = ["", "parameters", "training, s", "s a step", "peak MiB, training"]
    return markdown_table([*columns, *(["F1, int8", "MiB, int8"] if deployed else [])], lines)


def latency_table() -> str:
    """The three sizes in each form, timed in turns."""
    rows = read_json(base.RESULTS / LATENCY)["rows"]
    lines = [
        [row["name"], row["form"], f"{row['mib']:.1f}", "{median:.1f} ± {spread:.1f}".format(**row["ms"]["128"]["1"])]
        for row in rows
    ]
    return markdown_table(["", "form", "MiB", "ms, batch 1, 128 tokens"], lines)


def rates_table() -> str:
    """F1 of each method at each rate."""
    plan, lines = PLAN["rates"], []
    for label, point in plan["points"].items():
        line = [label]
        for rate in plan["values"]:
            path = record_path(base.RESULTS / "rates", f"{point} --learning_rate={rate}", plan["seed"])
            line.append(f"{Record.read(path).metrics['student']['f1']:.2f}" if path.is_file() else "not run")
        lines.append(line)
    return markdown_table(["", *(f"{rate:.0e}" for rate in plan["values"])], lines)


def page() -> str:
    """The page, from the records that are there."""
    parts = [
        PLAN["introduction"].strip(),
        "",
        "## The learning rates",
        "",
        PLAN["rates"]["note"].strip(),
        "",
        rates_table(),
        "",
    ]
    for size, title in SIZES.items():
        if rows_of(size):
            parts += [f"## {title.capitalize()}", "", quality_table(size), "", cost_table(size), ""]
    if (base.RESULTS / LATENCY).is_file():
        parts += ["## Where they run", "", latency_table(), ""]

    def read(point: str) -> list[Record]:
        paths = [record_path(base.RESULTS, point, seed) for seed in PLAN["seeds"]]
        return [Record.read(path) for path in paths if path.is_file()]

    answered = [each for each in questions_of(PLAN) if all(map(read, each.points.values()))]
    for number, question in enumerate(answered, 1):
        parts += question_section(number, question, read)
    used = [record for path, record in records().items() if "=" not in path.stem]
    for size in SIZES:
        check_same([record for record in used if size_of(record) == size])
    parts += [f"{len(used)} run{'s' * (len(used) > 1)} ({origin(used)}).", ""] if used else []
    parts.append(estimate())
    return "\n".join(parts) + "\n"


def estimate() -> str:
    """What the study took, from the seconds in its records."""
    seconds = {"the rates": 0.0, "students": 0.0, "scores out of domain": 0.0, "int8": 0.0}
    seconds["the rates"] = sum(Record.read(path).seconds["student"] for path in (base.RESULTS / "rates").glob("*.json"))
    of_students = records()
    once = {(size_of(r), r.seed): r.seconds["baseline"] for r in of_students.values() if "baseline" in r.seconds}
    seconds["students"] = sum(r.seconds["student"] for r in of_students.values()) + sum(once.values())
    seconds["scores out of domain"] = sum(read_json(path)["seconds"] for path in (base.RESULTS / "test").glob("*.json"))
    if (base.RESULTS / DEPLOYED).is_file():
        seconds["int8"] = sum(row["seconds"] for row in read_json(base.RESULTS / DEPLOYED).values())
    seconds["the teacher"] = max((r.seconds.get("teacher", 0.0) for r in of_students.values()), default=0.0)
    of_rates = map(Record.read, sorted((base.RESULTS / "rates").glob("*.json")))
    devices = ", ".join(sorted({record.device for record in [*of_students.values(), *of_rates]}))
    parts = ", ".join(f"{name} {value / 3600:.1f}" for name, value in seconds.items() if value)
    return f"{sum(seconds.values()) / 3600:.1f} hours where it was measured ({devices}): {parts}."


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    parser.add_argument("--estimate", action="store_true", help="only print what the study took")
    options = parser.parse_args()
    if options.estimate:
        print(estimate())
        return
    write_page(PAGE, page(), "python scripts/base_page.py", options.check)
    update(README, readme_table(), options.check, MARKER)


if __name__ == "__main__":
    main()
