"""Tables from records; a result is never typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from itrd_nlp.experiments.intervals import Examples, compare_examples, examples_of
from itrd_nlp.training.record import Record, best_epoch, origin
from itrd_nlp.utils.errors import UserError, reading, writing
from itrd_nlp.utils.tables import SHORT, Table


def comparison_table(records: Sequence[Record], against: str | None = None) -> Table:
    """Methods side by side, the best first: mean ± standard deviation over seeds, and the difference to one of them.

    The interval of the difference is over seeds and examples, see :mod:`~itrd_nlp.experiments.intervals`; the students
    that it compares were given the same examples and started alike.

    Args:
        records: of several recipes, each with the same seeds.
        against: label of the row that the others are compared with; by default the undistilled student, or the best
            method where it was not trained.

    Raises:
        UserError: records that do not go together, or no such row.
    """
    groups, names = group(records), _metrics_of(records)
    first = records[0]
    if against is not None and against not in groups:
        raise UserError(f"--against {against!r}: expected one of {list(groups)}")
    plain = undistilled(records)
    ranked = sorted(groups, key=lambda label: -np.mean([r.metrics["student"][names[-1]] for r in groups[label]]))
    against = against or (None if plain else ranked[0])
    bar = examples_of(groups[against], "student") if against else examples_of(plain, "baseline")
    teacher = first.metrics["teacher"]
    columns = ["", *(SHORT.get(name, name) for name in names), f"difference to {against or 'undistilled'}"]
    columns += ["of the teacher, %", "parameters", "projectors", "peak MiB, training", "s a step"]
    measured = any(record.evaluations for record in records)
    columns += [f"best {SHORT.get(names[-1], names[-1])} of all epochs"] if measured else []
    rows = [["teacher", *(f"{teacher[name]:.2f}" for name in names), "", "100", f"{first.parameters['teacher']:,}"]]
    rows[0] += [""] * (len(columns) - len(rows[0]))
    lines = [("undistilled", "baseline", plain)] if plain else []
    lines += [(label, "student", groups[label]) for label in ranked]
    for label, role, some in lines:
        scores = {name: [record.metrics[role][name] for record in some] for name in names}
        row = [label, *(mean_std(scores[name]) for name in names)]
        same = label == (against or "undistilled")
        row.append("" if same else difference_of(examples_of(some, role), bar))
        row.append(f"{100 * np.mean(scores[names[-1]]) / teacher[names[-1]]:.1f}")
        row.append(f"{some[0].parameters[role]:,}")
        row.append(f"{some[0].parameters.get('projectors', 0):,}" if role == "student" else "0")
        for field, shape in (("peak_mib", "{:.0f}"), ("step_seconds", "{:.3f}")):
            values = [getattr(record, field)[role] for record in some if role in getattr(record, field)]
            row.append(shape.format(np.median(values)) if values else "")
        row[-1] += " (live teacher)" if role == "student" and some[0].stored_teacher is False and row[-1] else ""
        best = best_epoch(some, role)
        row += [f"{best:.2f}" if best is not None else ""] if measured else []
        rows.append(row)
    seeds = sorted({record.seed for record in records})
    name = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    caption = f"Mean ± standard deviation over {name}, [95 % interval] of the {SHORT.get(names[-1], names[-1])} "
    if not against and len({json.dumps(record.metrics.get("baseline")) for record in records}) > len(seeds):
        caption += "difference to the best of several undistilled students of a seed "
    return Table(f"{caption}({origin(records)}):", columns, rows)


def _metrics_of(records: Sequence[Record]) -> list[str]:
    """The names of the metrics that all records have; raises :class:`UserError` where they differ."""
    first = records[0]
    for other in records:
        if other.metric_names != first.metric_names:
            raise UserError(
                f"{first.recipe} is scored by {', '.join(first.metric_names)}, {other.recipe} by "
                f"{', '.join(other.metric_names)}: expected one task in a table"
            )
    return first.metric_names


def group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by label, each with one record a seed and all with the same seeds."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        groups.setdefault(record.label, []).append(record)
    order = dict.fromkeys(record.label for record in records)
    for label, some in groups.items():
        seeds = [record.seed for record in some]
        if len({*seeds}) < len(seeds) or {*seeds} != {record.seed for record in records}:
            raise UserError(
                f"{label!r} has the seeds {seeds}, all records together {sorted({r.seed for r in records})}: expected "
                "each once; give recipes of their own a label of their own"
            )
    return {label: groups[label] for label in order}


def mean_std(values: Sequence[float]) -> str:
    """``"56.20 ± 0.31"``, or a single value alone.

    Example:
        >>> mean_std([1.0, 3.0]), mean_std([2.0])
        ('2.00 ± 1.41', '2.00')
    """
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def undistilled(records: Sequence[Record]) -> list[Record]:
    """For each seed the record with the best undistilled student: recipes of other rates have others; or none."""
    having = [record for record in records if "baseline" in record.metrics]
    best: dict[int, Record] = {}
    for record in sorted(having, key=lambda r: r.metrics["baseline"][r.metric_names[-1]]):
        best[record.seed] = record
    return [best[seed] for seed in sorted(best)] if {*best} == {record.seed for record in records} else []


def difference_of(some: Examples, others: Examples) -> str:
    """Mean difference with its 95 % interval; alone where :mod:`~itrd_nlp.experiments.intervals` has none."""
    middle, interval = compare_examples(some, others)
    return f"{middle:+.2f}" if interval is None else f"{middle:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def section(tables: Sequence[Table]) -> str:
    """Tables one after the other, in Markdown."""
    return "\n\n".join(table.markdown() for table in tables)


def with_section(text: str, generated: str, name: str, marker: str = "itrd report") -> str:
    """``text`` with what stands between its lines ``<!-- marker: begin -->`` and ``end`` replaced by ``generated``."""
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
