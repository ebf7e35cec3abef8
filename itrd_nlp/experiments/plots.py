"""Figures of records: quality against latency and size, differences, loss terms, sweeps; and a page that shows them."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from itrd_nlp.experiments.intervals import compare_examples
from itrd_nlp.experiments.report import baselines_of, methods_of, teachers_of
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError, needing
from itrd_nlp.utils.tables import Table, metric_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "o^sDvP*X"
AXIS = re.compile(r"([a-z_][\w.]*)=([^{\[(]*)")  # of a label: an argument and a plain value
NOT_TERMS = ("loss", "grad_norm", "learning_rate", "epoch", "step")


def figures(records: Sequence[Record]) -> dict[str, list[str]]:
    """Every figure that the records of one comparison, or a single record, can show: title -> its SVGs.

    Raises:
        UserError: matplotlib is not installed, or the records cannot be compared.
    """
    drawn = {
        "Quality against latency": quality(records, "latency"),
        "Quality against size": quality(records, "size"),
        "Loss terms over epochs": loss_terms(records),
    }
    drawn |= {f"{metric} over {argument}": [figure] for metric, argument, figure in sweeps(records)}
    return {title: [svg(figure) for figure in group] for title, group in drawn.items() if group}


def quality(records: Sequence[Record], against: str) -> "list[Figure]":
    """The last metric of each method over its ``latency`` (batch 1) or ``size``; no figure where that is not measured.

    Names stand at the right, the best on top, each with a line to its point: methods with the same network have the
    same cost, so their points lie close together.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    latencies = {r.parameters[role]: r.latency_ms[role]["1"]["median"] for r in records for role in r.latency_ms}
    methods = methods_of(records)
    for method in (*teachers_of(methods), *baselines_of(methods).values(), *methods):
        for record, score in zip(method.records, method.scores(), strict=True):
            count = record.parameters.get(method.role, 0)  # 0 of a teacher whose outputs are in the data
            cost = latencies.get(count) if against == "latency" else record.size_mib.get(method.role)
            if cost is not None:
                points.setdefault(method.label, []).append((cost, score))
    if not points:
        return []
    size = 3.2 + 0.075 * max(map(len, points)), max(3.5, 0.3 * len(points))  # inches: room for every name
    cost_name = "latency, ms (batch 1, CPU)" if against == "latency" else "weights, MiB"
    figure, axis = _axes(cost_name, _metric(records), size)
    means = {label: np.mean(of_seeds, axis=0) for label, of_seeds in points.items()}
    for i, label in enumerate(sorted(means, key=lambda label: -means[label][1])):
        of_seeds = np.array([score for _, score in points[label]])
        axis.errorbar(*means[label], of_seeds.std(ddof=1) if len(of_seeds) > 1 else None, fmt="o", capsize=3)
        name_position = (1.06, 1 - (i + 0.5) / len(points))
        line = {"arrowstyle": "-", "color": f"C{i}", "alpha": 0.6, "relpos": (0, 0.5)}
        axis.annotate(label, means[label], name_position, "data", "axes fraction", line, va="center", fontsize=9)
    axis.set_xlim(left=0)
    return [figure]


def loss_terms(records: Sequence[Record]) -> "list[Figure]":
    """Each loss term over the epochs, a line per method, for the first seed."""
    logs = {method.label: method.records[0].terms.get("student", []) for method in methods_of(records)}
    terms = sorted({name for log in logs.values() for row in log for name in row} - {*NOT_TERMS})
    drawn = []
    for term in terms:
        figure, axis = _axes("epoch", "", (4.2, 2.8))
        axis.set_title(term)
        for label, log in logs.items():
            points = [(row["epoch"], row[term]) for row in log if term in row]
            if points:
                axis.plot(*np.array(points).T, label=label, linewidth=1.5)
        axis.legend(fontsize=8, frameon=False)
        drawn.append(figure)
    return drawn


def sweeps(records: Sequence[Record]) -> "list[tuple[str, str, Figure]]":
    """For each swept argument: the metric, the argument and a figure, with a line per setting of the others."""
    points = [(axes_of(record), record.metrics["student"][record.metric_names[-1]]) for record in records]
    drawn = []
    for argument in dict.fromkeys(name for settings, _ in points for name in settings):
        lines: dict[str, dict[Any, list[float]]] = {}  # setting of the other arguments -> value -> score of each seed
        for settings, score in points:
            if argument in settings:
                others = [f"{name.rpartition('.')[2]} {settings[name]}" for name in settings if name != argument]
                lines.setdefault(", ".join(others), {}).setdefault(settings[argument], []).append(score)
        if max(map(len, lines.values())) < 2:
            continue
        figure, axis = _axes(argument, _metric(records))
        for label, line in lines.items():
            if all(isinstance(value, int | float) for value in line):
                line = dict(sorted(line.items()))
            else:
                line = {str(value): scores for value, scores in line.items()}
            means = [np.mean(scores) for scores in line.values()]
            spreads = [np.std(scores, ddof=1) if len(scores) > 1 else 0 for scores in line.values()]
            axis.errorbar([*line], means, spreads, marker="o", capsize=3, label=label or None)
        if any(lines):
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
        drawn.append((_metric(records), argument, figure))
    return drawn


def axes_of(record: Record) -> dict[str, float | str]:
    """The arguments that a point of a sweep sets, read from its label; numbers as numbers."""
    words = (AXIS.fullmatch(word) for word in record.label.split(", "))
    return {word[1]: _number(word[2]) for word in words if word}


def _number(text: str) -> float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def benchmark_figure(record: Mapping[str, Any]) -> "Figure":
    """The rows of ``itrd benchmark``: the last metric, or the size where nothing was scored, over the latency."""
    length, batch = record["lengths"][len(record["lengths"]) // 2], str(min(record["batches"]))
    metric = record["metric_names"][-1] if record["metric_names"] else None
    inputs = f"{length} tokens" if length else "images"
    device = "CPU" if record["device"].startswith("cpu") else "GPU"
    cost = f"latency, ms (batch {batch}, {inputs}, {device})"
    figure, axis = _axes(cost, metric_title(metric) if metric else "MiB")
    markers = dict(zip(dict.fromkeys(row["form"] for row in record["rows"]), itertools.cycle(MARKERS), strict=False))
    for i, name in enumerate(dict.fromkeys(row["name"] for row in record["rows"])):
        rows = [row for row in record["rows"] if row["name"] == name]
        x = [row["ms"][str(length)][batch]["median"] for row in rows]
        y = [row["metrics"][metric] if metric else row["mib"] for row in rows]
        axis.plot(x, y, color=f"C{i}", linewidth=1, label=name)
        for j, row in enumerate(rows):
            axis.plot(x[j], y[j], markers[row["form"]], color=f"C{i}")
    for form, marker in markers.items():
        axis.plot([], [], marker, color="grey", label=form)
    axis.set_xlim(left=0)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def differences(records: Sequence[Record], against: str | None = None) -> "Figure":
    """The difference of each method to one of them, with its interval of :mod:`~itrd_nlp.experiments.intervals`.

    Args:
        records: of several methods, each with the same seeds.
        against: label of the method that is subtracted; the names of its own variants leave it out. By default the
            undistilled student, or the best method where there is none, or several that do not start alike.

    Raises:
        UserError: the records cannot be compared, or no method has that label.
    """
    methods = methods_of(records)
    baselines = [*baselines_of(methods).values()]
    methods += baselines
    examples = {method.label: method.examples() for method in methods}
    ranked = sorted(examples, key=lambda label: examples[label].scores().mean())
    against = against or (baselines[0].label if len(baselines) == 1 else ranked[-1])
    if against not in examples:
        raise UserError(f"against {against!r}: expected one of {list(examples)}")
    ranked.remove(against)
    inches = (8, 1 + 0.28 * len(ranked))
    figure, axis = _axes(f"{_metric(records)} minus that of {against}, with 95 % interval", "", inches)
    for i, label in enumerate(ranked):
        middle, interval = compare_examples(examples[label], examples[against])
        reach = None if interval is None else [[middle - interval[0]], [interval[1] - middle]]
        axis.errorbar(middle, i, xerr=reach, fmt="o", color="C0", capsize=3)
    axis.axvline(0, color="black", linewidth=1)
    names = [shorten(label.removeprefix(f"{against}, "), 50, placeholder=" ...") for label in ranked]
    axis.set_yticks(range(len(ranked)), names, fontsize=9)
    return figure


def _metric(records: Sequence[Record]) -> str:
    """The last metric, as figures call it."""
    return metric_title(records[0].metric_names[-1])


def need_matplotlib() -> type["Figure"]:
    """Matplotlib's class of figures; raises :class:`UserError` where it is not installed."""
    with needing("plots need matplotlib (--format md and csv do not)", "plots"):
        from matplotlib.figure import Figure
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


def html(tables: Sequence[Table], figures: Mapping[str, Sequence[str]]) -> str:
    """A page of tables, and of figures as SVG by their title; it fits a phone and a dark screen."""
    pages = Environment(loader=PackageLoader("itrd_nlp", "page"), autoescape=True, trim_blocks=True)
    pages.filters["code"] = _code
    return pages.get_template("report.html").render(tables=tables, figures=figures) + "\n"


def _code(text: str) -> Markup:
    """Text with `words` between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))
