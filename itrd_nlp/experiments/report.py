"""Tables that compare the records of several methods, and Markdown files that hold them."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itrd_nlp.experiments.intervals import Examples, compare_examples, examples_of
from itrd_nlp.training.record import Record, best_epoch, decimals, origin
from itrd_nlp.utils.errors import UserError, reading, writing
from itrd_nlp.utils.tables import Table, metric_title

MARKER = "itrd report"  # of a section in a Markdown file


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

    @property
    def start(self) -> tuple[str | None, ...]:
        """Digest of the untrained student, of each seed."""
        return tuple(record.digests.get("student") for record in self.records)

    def share_kept(self) -> float | None:
        """The metric over that of the teacher, the mean over seeds; None where no teacher was scored."""
        metric = self.records[0].metric_names[-1]
        teachers = [record.metrics.get("teacher", {}).get(metric) for record in self.records]
        if not all(teachers):
            return None
        return float(np.mean(np.divide(self.scores(), np.array(teachers, dtype=float))))


def comparison_table(records: Sequence[Record], against: str | None = None) -> Table:
    """Methods side by side, the best first: mean ± standard deviation over seeds, and the difference to one of them.

    The interval of the difference is over seeds and examples, see :mod:`~itrd_nlp.experiments.intervals`. Students that
    do not start alike are compared each with its own undistilled student, unless ``against`` names one row for all.

    Args:
        records: of several recipes, each with the same seeds.
        against: label of the row that the others are compared with; by default the undistilled student, or the best
            method where no undistilled student was trained.

    Raises:
        UserError: the records cannot stand in one table, or no row has that label.
    """
    if not records:
        raise UserError("no records to compare: expected at least one; check the paths")
    methods = methods_of(records)
    baselines = baselines_of(methods)
    labels = [method.label for method in methods]
    if against is not None and against not in labels:
        raise UserError(f"--against {against!r}: expected one of {labels}")
    ranked = sorted(methods, key=lambda method: -np.mean(method.scores()))
    if against:
        references, name = dict.fromkeys([method.start for method in methods], methods[labels.index(against)]), against
    elif baselines:
        references, name = baselines, next(iter(baselines.values())).label.partition(",")[0]
    else:
        references, name = dict.fromkeys([method.start for method in methods], ranked[0]), ranked[0].label
    with_epochs = any(record.evaluations for record in records)
    cells = [
        _cells(method, references.get(method.start), name, with_epochs) for method in (*baselines.values(), *ranked)
    ]
    teacher_rows = [_teacher_cells(teacher, [*cells[0]]) for teacher in teachers_of(methods)]

    last_metric = metric_title(records[0].metric_names[-1])
    seeds = sorted({record.seed for record in records})
    caption = f"Mean ± standard deviation over seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, "
    caption += f"[95 % interval] of the {last_metric} "
    starts = {(record.digests.get("student"), record.seed) for record in records}
    of_baselines = {json.dumps(record.metrics["baseline"]) for record in records if "baseline" in record.metrics}
    if not against and len(of_baselines) > len(starts):
        caption += "difference to the best of several undistilled students of a seed "
    table_rows = [list(row.values()) for row in (*teacher_rows, *cells)]
    return Table(f"{caption}({origin(records)}):", [*cells[0]], table_rows)


def teachers_of(methods: Sequence[Method]) -> list[Method]:
    """A row for each teacher of some methods, of which most comparisons have one."""
    of_teacher: dict[tuple[str | None, ...], Method] = {}
    for method in methods:
        if "teacher" in method.records[0].metrics:
            of_teacher.setdefault(tuple(record.digests.get("teacher") for record in method.records), method)
    rows = []
    for method in of_teacher.values():
        distinct = {record.digests.get("teacher"): record for record in reversed(method.records)}
        label = "teacher" if len(of_teacher) == 1 else f"teacher of {method.label}"
        rows.append(Method(label, "teacher", [*distinct.values()]))
    return rows


def _teacher_cells(teacher: Method, columns: Sequence[str]) -> dict[str, str]:
    """The row of a teacher: column -> text."""
    first = teacher.records[0]
    cells = {**dict.fromkeys(columns, ""), "": teacher.label, "of the teacher, %": "100"}
    if "teacher" in first.parameters:
        cells["parameters"] = f"{first.parameters['teacher']:,}"
    scored = [name for name in first.metric_names if name in first.metrics["teacher"]]
    return cells | {metric_title(name): _mean_std(teacher, name) for name in scored}


def _cells(method: Method, reference: Method | None, name: str, with_epochs: bool) -> dict[str, str]:
    """A row of the comparison: column -> text.

    Args:
        reference: what the method is compared with, if anything; ``name`` is what the column calls it.
    """
    first, is_student = method.records[0], method.role == "student"
    cells = {"": method.label}
    scored = [name for name in first.metric_names if name in first.metrics[method.role]]
    cells |= {metric_title(name): _mean_std(method, name) if name in scored else "" for name in first.metric_names}
    cells[f"difference to {name}"] = (
        "" if reference in (None, method) else difference_of(method.examples(), reference.examples())
    )
    share = method.share_kept()
    cells["of the teacher, %"] = "" if share is None else f"{100 * share:.1f}"
    cells["parameters"] = f"{first.parameters[method.role]:,}"
    cells["projectors"] = f"{first.parameters.get('projectors', 0):,}" if is_student else "0"
    for column, field, digits in (("peak MiB, training", "peak_mib", 0), ("s a step", "step_seconds", 3)):
        values = [getattr(record, field).get(method.role) for record in method.records]
        measured = [value for value in values if value is not None]
        cells[column] = f"{np.median(measured):.{digits}f}" if measured else ""
    if cells["s a step"] and is_student and first.stored_teacher is False:
        cells["s a step"] += " (live teacher)"
    if with_epochs:
        last_metric, best = first.metric_names[-1], best_epoch(method.records, method.role)
        cells[f"best {metric_title(last_metric)} of all epochs"] = "" if best is None else f"{best:.2f}"
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


def baselines_of(methods: Sequence[Method]) -> dict[tuple[str | None, ...], Method]:
    """By the start of some methods, the best undistilled student of each seed: recipes may train it with other rates.

    Without labels it is untrained, and its row says so. A start is left out that lacks one for a seed.
    """
    alike: dict[tuple[str | None, ...], list[Method]] = {}
    for method in methods:
        alike.setdefault(method.start, []).append(method)
    baselines = {}
    for start, group in alike.items():
        records = [record for method in group for record in method.records]
        with_baseline = [record for record in records if "baseline" in record.metrics]
        by_score = sorted(with_baseline, key=lambda record: record.metrics["baseline"][record.metric_names[-1]])
        best = {record.seed: record for record in by_score}
        if {*best} == {record.seed for record in records}:
            trained = all("baseline" in record.seconds for record in best.values())
            label = "undistilled" if trained else "untrained"  # without labels
            label += f", as {group[0].label}" if len(alike) > 1 else ""
            baselines[start] = Method(label, "baseline", [best[seed] for seed in sorted(best)])
    return baselines


def _mean_std(method: Method, metric: str) -> str:
    values = method.scores(metric)
    return mean_std(values, decimals(metric, values))


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """``"56.20 ± 0.31"``, or a single value alone; with so many digits after the point.

    Example:
        >>> mean_std([1.0, 3.0]), mean_std([2.0])
        ('2.00 ± 1.41', '2.00')
    """
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def difference_of(first: Examples, second: Examples, groups: Sequence[int] | None = None) -> str:
    """Mean difference with its 95 % interval, if :func:`~itrd_nlp.experiments.intervals.compare_examples` has one."""
    middle, interval = compare_examples(first, second, groups)
    return f"{middle:+.2f}" if interval is None else f"{middle:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def section(tables: Sequence[Table]) -> str:
    """Tables one after the other, in Markdown."""
    return "\n\n".join(table.markdown() for table in tables)


def with_section(text: str, generated: str, name: str, marker: str = MARKER) -> str:
    """``text`` with ``generated`` between its lines ``<!-- marker: begin -->`` and ``<!-- marker: end -->``."""
    first, last = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"{name} has no report section: expected a line {first!r} and a line {last!r}")
    return f"{before}{first}\n{generated}\n{last}{after}"


def update(path: Path, generated: str, check: bool = False, marker: str = MARKER) -> None:
    """Write ``generated`` into the marked section of a file; ``check`` only refuses a stale one."""
    with reading(path, "a Markdown file with the report's markers"):
        text = path.read_bytes().decode("utf-8")
    new = with_section(text.replace("\r\n", "\n"), generated, str(path), marker)
    if "\r\n" in text:
        new = new.replace("\n", "\r\n")
    if check and new != text:
        raise UserError(f"{path}: its section {marker!r} is stale; run the same command without --check")
    if not check:
        with writing(path):
            path.write_bytes(new.encode("utf-8"))
