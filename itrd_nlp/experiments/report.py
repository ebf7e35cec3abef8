"""Tables that compare the records of several methods, and Markdown files that hold them."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itrd_nlp.experiments.intervals import Examples, compare_examples, examples_of
from itrd_nlp.training.record import Record, best_epoch, origin
from itrd_nlp.utils.errors import UserError, reading, writing
from itrd_nlp.utils.tables import SHORT, Table


class Method(NamedTuple):
    """A row of a comparison: one model, trained with several seeds."""

    label: str
    role: str  # its row in each record: teacher, baseline or student
    records: list[Record]  # one per seed

    def scores(self, metric: str | None = None) -> list[float]:
        """The metric of each seed; by default the last one, by which methods are ranked."""
        return [record.metrics[self.role][metric or record.metric_names[-1]] for record in self.records]

    def examples(self) -> Examples:
        return examples_of(self.records, self.role)


def comparison_table(records: Sequence[Record], against: str | None = None) -> Table:
    """Methods side by side, the best first: mean ± standard deviation over seeds, and the difference to one of them.

    The interval of the difference is over seeds and examples, see :mod:`~itrd_nlp.experiments.intervals`; the students
    that it compares were given the same examples and started alike.

    Args:
        records: of several recipes, each with the same seeds.
        against: label of the row that the others are compared with; by default the undistilled student, or the best
            method where no undistilled student was trained.

    Raises:
        UserError: the records cannot stand in one table, or no row has that label.
    """
    methods, baseline = methods_of(records), undistilled(records)
    labels = [method.label for method in methods]
    if against is not None and against not in labels:
        raise UserError(f"--against {against!r}: expected one of {labels}")
    ranked = sorted(methods, key=lambda method: -np.mean(method.scores()))
    reference = methods[labels.index(against)] if against else baseline or ranked[0]
    rows = [baseline, *ranked] if baseline else ranked

    metric_names, teacher = records[0].metric_names, records[0].metrics.get("teacher", {})
    last_metric = SHORT.get(metric_names[-1], metric_names[-1])
    with_epochs = any(record.evaluations for record in records)
    cells = [_cells(method, reference, teacher.get(metric_names[-1]), with_epochs) for method in rows]
    teacher_cells = dict.fromkeys(cells[0], "")
    teacher_cells |= {"": "teacher", "of the teacher, %": "100" if teacher else ""}
    if "teacher" in records[0].parameters:
        teacher_cells["parameters"] = f"{records[0].parameters['teacher']:,}"
    teacher_cells |= {SHORT.get(name, name): f"{teacher[name]:.2f}" for name in metric_names if name in teacher}

    seeds = sorted({record.seed for record in records})
    caption = f"Mean ± standard deviation over seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, "
    caption += f"[95 % interval] of the {last_metric} "
    if not against and len({json.dumps(record.metrics.get("baseline")) for record in records}) > len(seeds):
        caption += "difference to the best of several undistilled students of a seed "
    table_rows = [list(row.values()) for row in ([teacher_cells] if teacher else []) + cells]
    return Table(f"{caption}({origin(records)}):", list(teacher_cells), table_rows)


def _cells(method: Method, reference: Method, teacher_score: float | None, with_epochs: bool) -> dict[str, str]:
    """A row of the comparison: column -> text."""
    first, is_student = method.records[0], method.role == "student"
    cells = {"": method.label}
    scored = [name for name in first.metric_names if name in first.metrics[method.role]]
    cells |= {
        SHORT.get(name, name): mean_std(method.scores(name)) if name in scored else "" for name in first.metric_names
    }
    same = method.label == reference.label
    cells[f"difference to {reference.label}"] = "" if same else difference_of(method.examples(), reference.examples())
    cells["of the teacher, %"] = (
        "" if teacher_score is None else f"{100 * np.mean(method.scores()) / teacher_score:.1f}"
    )
    cells["parameters"] = f"{first.parameters[method.role]:,}"
    cells["projectors"] = f"{first.parameters.get('projectors', 0):,}" if is_student else "0"
    for column, field, decimals in (("peak MiB, training", "peak_mib", 0), ("s a step", "step_seconds", 3)):
        values = [getattr(record, field).get(method.role) for record in method.records]
        measured = [value for value in values if value is not None]
        cells[column] = f"{np.median(measured):.{decimals}f}" if measured else ""
    if cells["s a step"] and is_student and first.stored_teacher is False:
        cells["s a step"] += " (live teacher)"
    if with_epochs:
        last_metric, best = first.metric_names[-1], best_epoch(method.records, method.role)
        cells[f"best {SHORT.get(last_metric, last_metric)} of all epochs"] = "" if best is None else f"{best:.2f}"
    return cells


def methods_of(records: Sequence[Record]) -> list[Method]:
    """The students of the records by label; raises :class:`UserError` where their metrics or seeds differ."""
    for first, other in itertools.pairwise(records):
        if other.metric_names != first.metric_names:
            raise UserError(
                f"{first.recipe} is scored by {', '.join(first.metric_names)}, {other.recipe} by "
                f"{', '.join(other.metric_names)}: expected one task in a table"
            )
    all_seeds = sorted({record.seed for record in records})
    by_label: dict[str, list[Record]] = {record.label: [] for record in records}
    for record in sorted(records, key=lambda record: record.seed):
        by_label[record.label].append(record)
    for label, of_label in by_label.items():
        seeds = [record.seed for record in of_label]
        if seeds != all_seeds:
            raise UserError(
                f"{label!r} has the seeds {seeds}, all records together {all_seeds}: expected each once; give recipes "
                "of their own a label of their own"
            )
    return [Method(label, "student", of_label) for label, of_label in by_label.items()]


def undistilled(records: Sequence[Record]) -> Method | None:
    """The best undistilled student of each seed (recipes may train it with other rates); None where a seed has none."""
    with_baseline = [record for record in records if "baseline" in record.metrics]
    by_score = sorted(with_baseline, key=lambda record: record.metrics["baseline"][record.metric_names[-1]])
    best = {record.seed: record for record in by_score}
    if {*best} != {record.seed for record in records}:
        return None
    return Method("undistilled", "baseline", [best[seed] for seed in sorted(best)])


def mean_std(values: Sequence[float]) -> str:
    """``"56.20 ± 0.31"``, or a single value alone.

    Example:
        >>> mean_std([1.0, 3.0]), mean_std([2.0])
        ('2.00 ± 1.41', '2.00')
    """
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def difference_of(first: Examples, second: Examples, groups: Sequence[int] | None = None) -> str:
    """Mean difference with its 95 % interval, if :func:`~itrd_nlp.experiments.intervals.compare_examples` has one."""
    middle, interval = compare_examples(first, second, groups)
    return f"{middle:+.2f}" if interval is None else f"{middle:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def section(tables: Sequence[Table]) -> str:
    """Tables one after the other, in Markdown."""
    return "\n\n".join(table.markdown() for table in tables)


def with_section(text: str, generated: str, name: str, marker: str = "itrd report") -> str:
    """``text`` with ``generated`` between its lines ``<!-- marker: begin -->`` and ``<!-- marker: end -->``."""
    first, last = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"{name} has no report section: expected a line {first!r} and a line {last!r}")
    return f"{before}{first}\n{generated}\n{last}{after}"


def update(path: Path, generated: str, check: bool = False, marker: str = "itrd report") -> None:
    """Write ``generated`` into the marked section of a file; ``check`` only refuses a stale one."""
    with reading(path, "a Markdown file with the report's markers"):
        text = path.read_text(encoding="utf-8")
    new = with_section(text, generated, str(path), marker)
    if check and new != text:
        raise UserError(f"{path}: its section {marker!r} is stale; run the same command without --check")
    if not check:
        with writing(path):
            path.write_text(new, encoding="utf-8")
