"""Tables from records; a result is never typed by hand."""

from collections.abc import Sequence
from pathlib import Path

from itrd_nlp.errors import UserError
from itrd_nlp.record import Record

ROWS = {"teacher": "teacher", "baseline": "student without distillation", "student": "student with {losses}"}
SHORT = {"exact_match": "EM", "f1": "F1"}


def table(record: Record) -> str:
    """The rows of one record as a Markdown table: metrics, size, latency, time to train."""
    names = record.metric_names
    heads = [SHORT.get(name, name) for name in names]
    columns = ["", *heads, "parameters", "MiB", "ms, batch 1", "ms, batch 32", "training, s"]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(_row(record, role, names)) + " |" for role in ROWS if role in record.metrics]
    return "\n".join(lines)


def section(records: Sequence[Record]) -> str:
    """One table for each record, each under its recipe, seed, device and data."""
    parts = []
    for record in records:
        commit = (
            f"commit {record.commit[:10]}{' with changes' if record.dirty else ''}" if record.commit else "no commit"
        )
        data = ", ".join(f"{value:,} {key}" for key, value in record.data.items() if value)
        timed = f"; latency in fp32 on the CPU, {record.latency_length} tokens" if record.latency_length else ""
        parts.append(
            f"`{record.recipe}`, seed {record.seed} ({data}; {record.device}; torch {record.versions['torch']}, "
            f"transformers {record.versions['transformers']}; {commit}{timed}):\n\n{table(record)}"
        )
    return "\n\n".join(parts)


def with_section(text: str, generated: str, name: str, marker: str = "itrd report") -> str:
    """``text`` with what stands between its lines ``<!-- marker: begin -->`` and ``end`` replaced by ``generated``."""
    first, last = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"{name} has no report section: expected a line {first!r} and a line {last!r}")
    return f"{before}{first}\n{generated}\n{last}{after}"


def update(path: Path, records: Sequence[Record], check: bool = False) -> None:
    """Write the records' tables into the marked section of a file; ``check`` only refuses a stale one."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Markdown file with the report's markers")
    text = path.read_text(encoding="utf-8")
    new = with_section(text, section(records), str(path))
    if check and new != text:
        raise UserError(f"{path}: its generated section is stale; run the same command without --check")
    if not check:
        path.write_text(new, encoding="utf-8")


def _row(record: Record, role: str, names: Sequence[str]) -> list[str]:
    losses = " + ".join(record.arguments.get("losses", {"itrd": {}}))
    cells = [ROWS[role].format(losses=losses)]
    cells += [f"{record.metrics[role][name]:.2f}" for name in names]
    cells += [f"{record.parameters[role]:,}", f"{record.size_mib[role]:.1f}"]
    times = record.latency_ms.get(role) or record.latency_ms["student"]  # the baseline is the same network
    cells += [f"{times[batch]['median']:.1f} ± {times[batch]['spread']:.1f}" for batch in ("1", "32")]
    return [*cells, f"{record.seconds[role]:.0f}" if role in record.seconds else "given"]
