"""Figures of records: quality against latency and size, differences, loss terms, a sweep; and of features.

They need matplotlib.
"""

import io
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from itrd_nlp.experiments.intervals import compare_examples, examples_of
from itrd_nlp.experiments.report import group, undistilled
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tables import SHORT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "o^sDvP*X"
NOT_TERMS = ("loss", "grad_norm", "learning_rate", "epoch", "step")


def figures(records: Sequence[Record]) -> dict[str, list[str]]:
    """Title -> one SVG or several of whatever the records of one comparison, or a single one, can show.

    Raises:
        UserError: matplotlib is not installed, or records that do not go together.
    """
    made = {f"Quality against {name}": quality(records, name) for name in ("latency", "size")}
    made["Loss terms over epochs"] = loss_terms(records)
    made |= {f"{name} over {axis}": [figure] for name, axis, figure in sweeps(records)}
    return {title: [svg(figure) for figure in some] for title, some in made.items() if some}


def quality(records: Sequence[Record], against: str) -> "list[Figure]":
    """The last metric of each method over the latency (batch 1) or the size of its model; none where not measured.

    Names stand at the right, the best on top, and a line leads from each to its point: methods of one network share
    their cost, so that their points lie close.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    metric = records[0].metric_names[-1]
    timed = {r.parameters[role]: r.latency_ms[role]["1"]["median"] for r in records for role in r.latency_ms}
    for record in records:
        for role, scores in record.metrics.items():
            cost = timed.get(record.parameters[role]) if against == "latency" else record.size_mib.get(role)
            if cost is not None:
                label = {"teacher": "teacher", "baseline": "undistilled"}.get(role, record.label)
                points.setdefault(label, []).append((cost, scores[metric]))
    if not points:
        return []
    cost_name = "latency, ms (batch 1, CPU)" if against == "latency" else "weights, MiB"
    size = 3.2 + 0.075 * max(map(len, points)), max(3.5, 0.3 * len(points))  # room for the longest name, and for all
    figure, axis = _axes(cost_name, SHORT.get(metric, metric), size)
    ranked = sorted(points.items(), key=lambda item: -np.mean([y for _, y in item[1]]))
    for i, (label, some) in enumerate(ranked):
        x, y = np.array(some).T
        axis.errorbar(x.mean(), y.mean(), y.std(ddof=1) if len(y) > 1 else None, fmt="o", capsize=3)
        place = (1.06, 1 - (i + 0.5) / len(points))
        line = {"arrowstyle": "-", "color": f"C{i}", "alpha": 0.6, "relpos": (0, 0.5)}
        axis.annotate(label, (x.mean(), y.mean()), place, "data", "axes fraction", line, va="center", fontsize=9)
    axis.set_xlim(left=0)
    return [figure]


def loss_terms(records: Sequence[Record]) -> "list[Figure]":
    """Each term of each method over the epochs, for the first seed."""
    logs = {label: some[0].terms.get("student", []) for label, some in group(records).items()}
    names = sorted({name for log in logs.values() for row in log for name in row} - {*NOT_TERMS})
    made = []
    for name in names:
        figure, axis = _axes("epoch", "", (4.2, 2.8))
        axis.set_title(name)
        for label, log in logs.items():
            some = [(row["epoch"], row[name]) for row in log if name in row]
            if some:
                axis.plot(*np.array(some).T, label=label, linewidth=1.5)
        axis.legend(fontsize=8, frameon=False)
        made.append(figure)
    return made


def sweeps(records: Sequence[Record]) -> list[tuple[str, str, Any]]:
    """For each swept argument: the metric, the argument, and its figure, a line for each setting of the others."""
    from itrd_nlp.experiments.compare import axes_of

    points = [(axes_of(record), record) for record in records if "=" in record.label]
    metric = records[0].metric_names[-1]
    made = []
    for axis_name in dict.fromkeys(name for point, _ in points for name in point):
        lines: dict[str, dict[Any, list[float]]] = {}
        for point, record in points:
            if axis_name not in point:
                continue
            others = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in point.items() if k != axis_name)
            values = lines.setdefault(others, {}).setdefault(point[axis_name], [])
            values.append(record.metrics["student"][metric])
        if max(len(line) for line in lines.values()) < 2:
            continue
        figure, axis = _axes(axis_name, SHORT.get(metric, metric))
        for label, line in lines.items():
            numeric = all(isinstance(value, int | float) for value in line)
            line = dict(sorted(line.items())) if numeric else {str(value): y for value, y in line.items()}
            spread = [np.std(y, ddof=1) if len(y) > 1 else 0 for y in line.values()]
            axis.errorbar(
                [*line], [np.mean(y) for y in line.values()], spread, marker="o", capsize=3, label=label or None
            )
        if any(lines):
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
        made.append((SHORT.get(metric, metric), axis_name, figure))
    return made


def deployed(record: Mapping[str, Any]) -> "Figure":
    """The rows of ``itrd benchmark``: the last metric, or the size where nothing was scored, over the latency."""
    lengths, batch = record["lengths"], str(min(record["batches"]))
    length = lengths[len(lengths) // 2]
    metric = record["metric_names"][-1] if record["metric_names"] else None
    texts = f"{length} tokens" if length else "images"
    figure, axis = _axes(f"latency, ms (batch {batch}, {texts}, CPU)", SHORT.get(metric, metric) if metric else "MiB")
    forms = list(dict.fromkeys(row["form"] for row in record["rows"]))
    for i, model in enumerate(dict.fromkeys(row["name"] for row in record["rows"])):
        rows = [row for row in record["rows"] if row["name"] == model]
        x = [row["ms"][str(length)][batch]["median"] for row in rows]
        y = [row["metrics"][metric] if metric else row["mib"] for row in rows]
        axis.plot(x, y, color=f"C{i}", linewidth=1, label=model)
        for place, row in enumerate(rows):
            axis.plot(x[place], y[place], MARKERS[forms.index(row["form"]) % len(MARKERS)], color=f"C{i}")
    for i, form in enumerate(forms):
        axis.plot([], [], MARKERS[i % len(MARKERS)], color="grey", label=form)
    axis.set_xlim(left=0)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def differences(records: Sequence[Record], against: str | None = None) -> "Figure":
    """The difference of each method to one of them, with its interval of :mod:`~itrd_nlp.experiments.intervals`.

    Args:
        records: of several methods, each with the same seeds.
        against: label of the method that is subtracted, which the names of its own variants leave out; by default the
            undistilled student, or the best method where that was not trained.

    Raises:
        UserError: records that do not go together, or no such label.
    """
    scores = {label: examples_of(some, "student") for label, some in group(records).items()}
    if plain := undistilled(records):
        scores["undistilled"] = examples_of(plain, "baseline")
    ranked = sorted(scores, key=lambda label: scores[label].scores().mean())
    against = against or ("undistilled" if plain else ranked[-1])
    if against not in scores:
        raise UserError(f"against {against!r}: expected one of {list(scores)}")
    bar, metric = scores[against], records[0].metric_names[-1]
    ranked.remove(against)
    inches = (8, 1 + 0.28 * len(ranked))
    figure, axis = _axes(f"{SHORT.get(metric, metric)} minus that of {against}, with 95 % interval", "", inches)
    for place, label in enumerate(ranked):
        middle, interval = compare_examples(scores[label], bar)
        reach = None if interval is None else [[middle - interval[0]], [interval[1] - middle]]
        axis.errorbar(middle, place, xerr=reach, fmt="o", color="C0", capsize=3)
    axis.axvline(0, color="black", linewidth=1)
    names = [shorten(label.removeprefix(f"{against}, "), 50, placeholder=" ...") for label in ranked]
    axis.set_yticks(range(len(ranked)), names, fontsize=9)
    return figure


def need_matplotlib() -> type["Figure"]:
    """The class of figures; raises :class:`UserError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'itrd_nlp[plots]', or choose --format md or csv") from None
    return Figure


def _axes(x: str, y: str, inches: tuple[float, float] = (8, 4.5)) -> tuple[Any, Any]:
    figure = need_matplotlib()(figsize=inches, layout="constrained")
    axis = figure.add_subplot(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    return figure, axis


def svg(figure: Any) -> str:
    """A figure as the text of an SVG element."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "itrd", "svg.fonttype": "none"}):  # the same bytes each time
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
