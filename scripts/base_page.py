"""Write docs/base.md, and the table of README.md, from the records of scripts/base.py.

python scripts/base_page.py [--check | --estimate]
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import base
import numpy as np
from base import ARTICLES, DEPLOYED, LATENCY, PLAN, ROOT, SIZES, baseline_name, records, size_of, test_file
from studies import METRICS, question_section, questions_of, record_path, write_page

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.intervals import Examples, compare_examples
from itrd_nlp.experiments.report import difference_of, mean_std, update
from itrd_nlp.training.record import Record, origin
from itrd_nlp.utils.console import run_script
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.tables import markdown_table

PAGE, README, MARKER = ROOT / "docs" / "base.md", ROOT / "README.md", "base study"
SPLITS = {"validation": "", "test": ", new_wiki"}  # a column's name says on which file
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


def test_scores(name: str) -> dict[str, Any]:
    return read_json(test_file(name))


def rows_of(size: str) -> list[Row]:
    """The rows of a table: the student without distillation, then the methods by their F1."""
    of_recipes = of_size(size)
    by_seed = {record.seed: record for record in of_recipes.values() if "baseline" in record.metrics}
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


def best_rival(rows: Sequence[Row], split: str) -> Row | None:
    """The highest F1 on a file of all rows but ITRD's; None where none is scored."""
    rivals = [row for row in rows if row.label not in ITRD and row.is_scored(split)]
    return max(rivals, key=lambda row: float(np.mean(row.scores(split, "f1"))), default=None)


def sides_of(row: Row, rival: Row, split: str) -> tuple[list[int], list[Examples]]:
    """The seeds that two rows have in common, and what both scored on a file with these."""
    both = [seed for seed in row.seeds if seed in rival.seeds]
    return both, [side.examples(split, both) for side in (row, rival)]


def difference(row: Row, rival: Row | None, split: str) -> str:
    """The difference in F1 over common seeds, with its interval by article; empty of the best rival itself."""
    if rival is None or row.label == rival.label:
        return ""
    both, sides = sides_of(row, rival, split)
    text = difference_of(*sides, read_json(base.RESULTS / ARTICLES)[split])
    return text if len(both) == len(row.seeds) else f"{text} (seed {', '.join(map(str, both))})"


def teacher_scores(size: str) -> dict[str, dict[str, float]]:
    """EM and F1 of the teacher on each file on which it is scored."""
    scores = {"validation": rows_of(size)[0].records[0].metrics["teacher"]}
    return {**scores, "test": test_scores("teacher")["metrics"]} if test_file("teacher").is_file() else scores


def quality_table(size: str) -> str:
    """EM and F1 on both files, and each row's difference to the rival that is best on that file."""
    rows = rows_of(size)
    columns, cells = ["", "seeds"], [["teacher", "1"], *([row.label, str(len(row.seeds))] for row in rows)]
    for split, scores in teacher_scores(size).items():
        if not any(row.is_scored(split) for row in rows):
            continue
        rival, on = best_rival(rows, split), SPLITS[split]
        to = f"F1 difference to {rival.label if rival else 'a rival'}{on}"
        columns += [f"EM{on}", f"F1{on}", f"of the teacher, %{on}", to]
        cells[0] += [f"{scores['exact_match']:.2f}", f"{scores['f1']:.2f}", "100", ""]
        for row, line in zip(rows, cells[1:], strict=True):
            if not row.is_scored(split):
                line += ["not scored", "", "", ""]
                continue
            f1 = row.scores(split, "f1")
            line += [mean_std(row.scores(split, "exact_match")), mean_std(f1)]
            line += [f"{100 * np.mean(f1) / scores['f1']:.1f}", difference(row, rival, split)]
    return markdown_table(columns, cells)


def goals_table() -> str:
    """What ITRD (L_corr) was to reach at each size, and what it reached."""
    lines = []
    for size, title in SIZES.items():
        goal, rows = PLAN["goals"][size], rows_of(size)
        ours = next((row for row in rows if row.label == ITRD[0]), None)
        share, ahead = f"{goal['share']} % of the teacher's F1", f"F1 ahead of the best rival by {goal['ahead']}"
        for split, on in SPLITS.items():
            if ours is None or split not in teacher_scores(size) or not ours.is_scored(split):
                lines += [[title, f"{what}{on}", "not run", ""] for what in (share, ahead)]
                continue
            kept = 100 * float(np.mean(ours.scores(split, "f1"))) / teacher_scores(size)[split]["f1"]
            lines.append([title, f"{share}{on}", f"{kept:.1f} %", "held" if kept >= goal["share"] else "missed"])
            if (rival := best_rival(rows, split)) is not None:
                sides = sides_of(ours, rival, split)[1]
                middle, interval = compare_examples(*sides, read_json(base.RESULTS / ARTICLES)[split])
                verdict = "held" if middle >= goal["ahead"] else "missed"
                if interval is not None and interval[0] <= goal["ahead"] <= interval[1]:
                    verdict += ", within the interval"
                if missing := sorted(rivals(size) - {Path(record.recipe).name for record in of_size(size).values()}):
                    verdict += f" so far: {', '.join(missing)} not run"
                lines.append([title, f"{ahead}{on}", f"{difference(ours, rival, split)} ({rival.label})", verdict])
    published = "; ".join(f"{title} {PLAN['goals'][size]['published']}" for size, title in SIZES.items())
    table = markdown_table(["", "goal", "measured", ""], lines)
    return f"{table}\n\nITRD's authors published, on all of SQuAD, these shares and leads over TextBrewer: {published}."


def of_size(size: str) -> dict[Path, Record]:
    """The records of a size's own table."""
    return {path: record for path, record in records().items() if size_of(record) == size and "=" not in path.stem}


def rivals(size: str) -> set[str]:
    """The recipes of a size in the stages of the plan, without ITRD's."""
    names = {name for stage in PLAN["stages"].values() for name in stage["recipes"]}
    return {name for name in names if name.startswith(f"{size}-") and not name.endswith(("-best", "-itrd"))}


def readme_table() -> str:
    """A row for each method, its students of all sizes side by side, on the validation file alone."""
    tables = {size: {row.label: row for row in rows_of(size)} for size in reversed(SIZES) if rows_of(size)}
    columns, teacher = [""], ["teacher, 12 layers"]
    lines = {label: [_plainly(label)] for table in tables.values() for label in table}
    parameters = {}
    for size, table in tables.items():
        rival, first = best_rival([*table.values()], "validation"), table["undistilled"].records[0]
        columns += [f"{SIZES[size]}: EM / F1", "of the teacher, %", f"F1 difference to {_plainly(rival.label)}"]
        teacher += [" / ".join(f"{first.metrics['teacher'][name]:.2f}" for name in METRICS), "100", ""]
        for label, line in lines.items():
            line += _readme_cells(table[label], rival) if label in table else ["not run", "", ""]
        parameters |= {"the teacher": first.parameters["teacher"], SIZES[size]: first.parameters["baseline"]}
    seeds = {len(row.seeds) for table in tables.values() for row in table.values()}
    of_rows = "One seed" if seeds == {1} else f"{max(seeds)} seeds where ± is shown, else one"
    counts = ", ".join(f"{count / 1e6:.1f} in {of}" for of, count in parameters.items())
    words = f"{of_rows}. Millions of parameters: {counts}. {_deployed_words()}".strip()
    return f"{markdown_table(columns, [teacher, *lines.values()])}\n\n{words}"


def _deployed_words() -> str:
    """What ITRD (L_corr)'s students score, weigh and take in int8; nothing before they are exported."""
    if not (base.RESULTS / LATENCY).is_file():
        return ""
    deployed, ms = read_json(base.RESULTS / DEPLOYED), {}
    for row in read_json(base.RESULTS / LATENCY)["rows"]:
        ms[row["name"], row["form"]] = row["ms"]["128"]["1"]["median"]
    words = []
    for size in reversed(SIZES):
        row = next((row for row in rows_of(size) if row.label == ITRD[0]), None)
        if row is not None and row.names[0] in deployed and (size, "ONNX int8") in ms:
            of = deployed[row.names[0]]
            faster = ms["teacher", "PyTorch fp32"] / ms[size, "ONNX int8"]
            words.append(f"{SIZES[size]} {faster:.0f} times ({of['metrics']['f1']:.2f} F1, {of['mib']:.0f} MiB)")
    return f"In ONNX int8, ITRD is faster than the teacher in PyTorch fp32: {', '.join(words)}." if words else ""


def _readme_cells(row: Row, rival: Row) -> list[str]:
    exact, f1 = (row.scores("validation", name) for name in METRICS)
    share = 100 * np.mean(f1) / row.records[0].metrics["teacher"]["f1"]
    return [f"{mean_std(exact)} / {mean_std(f1)}", f"{share:.1f}", difference(row, rival, "validation")]


def _plainly(label: str) -> str:
    return "the student without distillation" if label == "undistilled" else label


def cost_table(size: str) -> str:
    """What each training takes, without the teacher's pass over the data, and its int8 model."""
    deployed = read_json(base.RESULTS / DEPLOYED) if (base.RESULTS / DEPLOYED).is_file() else {}
    rows = rows_of(size)
    lines = []
    for row in [Row("teacher", ["teacher"], rows[0].records[:1], "teacher"), *rows]:
        step = _median(record.step_seconds.get(row.role) for record in row.records)
        peak = _median(record.peak_mib.get(row.role) for record in row.records)
        seconds = _median(record.seconds.get(row.role) for record in row.records)
        if row.role == "student":  # a pass may have been part of its training; its last log is that of its last step
            seconds = step and step * row.records[0].terms[row.role][-1]["step"]
        line = [row.label, f"{row.records[0].parameters[row.role]:,}", _number(seconds and seconds / 60, 1)]
        line += [_number(step, 2), _number(peak, 0)]
        if deployed:
            exported = deployed.get(row.names[0])
            line += [f"{exported['metrics']['f1']:.2f}", f"{exported['mib']:.1f}"] if exported else ["not measured", ""]
        lines.append(line)
    columns = ["", "parameters", "training, min", "s a step", "peak MiB, training"]
    return markdown_table([*columns, *(["F1, int8", "MiB, int8"] if deployed else [])], lines)


def _median(values: Iterable[float | None]) -> float | None:
    """The median of what is known; None where nothing is, as of a run that was killed after its last step."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def latency_table() -> str:
    """The three sizes in each form, timed in turns."""
    rows = read_json(base.RESULTS / LATENCY)["rows"]
    lines = [
        [
            SIZES.get(row["name"], row["name"]),
            row["form"],
            f"{row['mib']:.1f}",
            "{median:.1f} ± {spread:.1f}".format(**row["ms"]["128"]["1"]),
        ]
        for row in rows
    ]
    return markdown_table(["", "form", "MiB", "ms, batch 1, 128 tokens"], lines)


def rates_table() -> str:
    """F1 of each method at each rate, and where the numbers come from."""
    plan, lines = PLAN["rates"], []
    used: list[Record] = []
    for label, point in plan["points"].items():
        line = [label]
        for rate in plan["values"]:
            path = record_path(base.RESULTS / "rates", f"{point} --learning_rate={rate}", plan["seed"])
            if path.is_file():
                used.append(Record.read(path))
                line.append(f"{used[-1].metrics['student']['f1']:.2f}")
            else:
                line.append("not run")
        lines.append(line)
    table = markdown_table(["", *(f"{rate:.0e}" for rate in plan["values"])], lines)
    return f"{table}\n\n{len(used)} runs ({origin(used)})." if used else table


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
    parts += ["## The goals", "", goals_table(), "", PLAN["bounds"].strip(), ""]
    if (base.RESULTS / LATENCY).is_file():
        parts += ["## Where they run", "", PLAN["deployment"].strip(), "", latency_table(), ""]

    asked: dict[Path, Record] = {}

    def read(point: str) -> list[Record]:
        paths = [record_path(base.RESULTS, point, seed) for seed in PLAN["seeds"]]
        return [asked.setdefault(path, Record.read(path)) for path in paths if path.is_file()]

    answered = [each for each in questions_of(PLAN) if all(map(read, each.points.values()))]
    for number, question in enumerate(answered, 1):
        parts += question_section(number, question, read, read_json(base.RESULTS / ARTICLES)["validation"])
    used: dict[Path, Record] = {}
    for size in SIZES:
        check_same([*of_size(size).values()])
        used |= of_size(size)
    of_one_teacher = [record for path, record in {**used, **asked}.items() if "student=" not in path.name]
    if len({record.digests["teacher"] for record in of_one_teacher}) > 1:
        raise SystemExit("the records are of several teachers: expected one; run scripts/base.py again")
    runs = [*used.values()]
    stages = PLAN["stages"].values()
    count = len({(name, seed) for stage in stages for name in stage["recipes"] for seed in stage["seeds"]})
    parts += [f"{len(runs)} of {count} runs ({origin(runs)}).", ""] if runs else []
    parts.append(estimate())
    return "\n".join(parts) + "\n"


def estimate() -> str:
    """What the study took so far, from the seconds in its records."""
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
    return f"The study took {sum(seconds.values()) / 3600:.1f} hours so far ({devices}): {parts}."


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
    run_script(main)
