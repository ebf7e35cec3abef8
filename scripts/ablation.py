"""The study of scripts/ablation.yaml: runs what is not yet there, keeps its records, writes docs/ablation.md.

    python scripts/ablation.py run --teacher FOLDER --train_file train.json --validation_file validation.json
    python scripts/ablation.py page [--check]

A run is a recipe and what one point changes in it. `run` takes any argument of `itrd distill`, continues what was
killed, and may be called twice at once: each call leaves alone what the other is at. `--only 2 3` picks questions by
their numbers.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from studies import Question, origins, question_section, questions_of, record_path, train_missing, write_page

from itrd_nlp.experiments.fairness import DIGESTS, check_same
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.training.record import Record
from itrd_nlp.utils.console import run_script, show_messages

ROOT = Path(__file__).resolve().parents[1]
PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "scripts" / "results" / "ablation"
COMPARISON = RESULTS.parent / "comparison"
PAGE = ROOT / "docs" / "ablation.md"


def read_plan() -> tuple[dict[str, Any], list[Question]]:
    """The whole plan, and its questions."""
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    return plan, questions_of(plan)


def run(only: list[int], output: Path, argv: list[str]) -> None:
    """Train the points that have no record yet."""
    plan, questions = read_plan()
    chosen = [q for number, q in enumerate(questions, 1) if not only or number in only]
    points = list(dict.fromkeys(point for q in chosen for point in q.points.values()))
    train_missing(points, plan["seeds"], [*plan["arguments"].split(), *argv], output, RESULTS)


def page() -> str:
    """The page, from the records that are there."""
    plan, questions = read_plan()
    parts = [plan["introduction"].strip(), ""]
    used: dict[Path, Record] = {}

    def read(point: str) -> list[Record]:
        paths = [record_path(RESULTS, point, seed) for seed in plan["seeds"]]
        return [used.setdefault(path, Record.read(path)) for path in paths if path.is_file()]

    for number, question in enumerate(questions, 1):
        parts += question_section(number, question, read)
    check_same([record for path, record in used.items() if "student=" not in path.name], budget=False)
    if len({tuple(record.digests[what] for what in DIGESTS if what != "student") for record in used.values()}) > 1:
        raise SystemExit("the records are of several teachers or data: expected one; run them again together")
    compared = [Record.read(path) for path in sorted(COMPARISON.glob("*.json"))]
    if compared:
        table = comparison_table(compared, against=plan["comparison"]["against"])
        parts += ["## The methods beside ITRD", "", plan["comparison"]["text"].strip(), "", table.markdown(), ""]
    parts.append(origins([*used.values()]))
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of questions")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    options, rest = parser.parse_known_args()
    if options.what == "page" and (rest or options.only):
        parser.error(f"page {' '.join(rest) or '--only'}: expected --check alone")
    count = len(read_plan()[1])
    if wrong := [number for number in options.only if not 1 <= number <= count]:
        parser.error(f"--only {wrong[0]}: expected numbers from 1 to {count}")
    if options.what == "run":
        show_messages()
        run(options.only, options.output_dir, rest)
        return
    write_page(PAGE, page(), "python scripts/ablation.py page", options.check)


if __name__ == "__main__":
    run_script(main)
