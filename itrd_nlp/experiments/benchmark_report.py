"""The table and the plot of a benchmark, from its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itrd_nlp.experiments.plots import benchmark_figure, html, svg
from itrd_nlp.training.record import LATENCY, shown
from itrd_nlp.utils.errors import writing
from itrd_nlp.utils.tables import Table, metric_title


def benchmark_table(record: Mapping[str, Any]) -> Table:
    """Each model in each form: scores, size, latency of every batch, throughput of the largest."""
    metric_names, lengths, batches = record["metric_names"], record["lengths"], record["batches"]
    columns = ["", *(metric_title(name) for name in metric_names), "parameters", "MiB"]
    columns += [f"ms, {_shape(length, batch)}" for length in lengths for batch in batches]
    columns += [f"a second, {_shape(length, max(batches))}" for length in lengths]
    rows = []
    for row in record["rows"]:
        cells = [f"{row['name']}, {row['form']}", *(shown(name, row["metrics"][name]) for name in metric_names)]
        cells += ["" if row["parameters"] is None else f"{row['parameters']:,}", f"{row['mib']:.1f}"]
        times = [row["ms"][str(length)][str(batch)] for length in lengths for batch in batches]
        cells += [f"{time['median']:.1f} ± {time['spread']:.1f}" for time in times]
        batch_ms = [row["ms"][str(length)][str(max(batches))]["median"] for length in lengths]
        cells += [f"{1000 * max(batches) / ms:,.0f}" for ms in batch_ms]
        rows.append(cells)
    data = f"{record['examples']:,} validation examples; " if record["examples"] else ""
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers", "onnxruntime"))
    shape, unit = ("images", "images") if lengths == [0] else ("texts x tokens", "texts")
    caption = f"Latency by {shape} in ms, {LATENCY}, and {unit} a second ({data}{record['device']}; {versions}):"
    return Table(caption, columns, rows)


def _shape(length: int, batch: int) -> str:
    return f"{batch} x {length}" if length else str(batch)


def write_plot(path: Path, record: Mapping[str, Any]) -> None:
    """Draw the rows of a record into an .svg, or into an .html with the table."""
    drawn = svg(benchmark_figure(record))
    page = html([benchmark_table(record)], {"Quality, or size, against latency": [drawn]})
    with writing(path):
        path.write_text(drawn + "\n" if path.suffix == ".svg" else page, encoding="utf-8")
