"""The record of a run: its arguments, its results and the machine; and the table of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itrd_nlp.utils.errors import DamagedError, UserError, one_line
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.tables import ERROR_METRICS, Table, metric_title


@dataclass
class Record:
    """One run in numbers, most of them by row: ``teacher``, ``baseline`` and ``student``.

    Sizes are in MiB, parameters a plain count, latencies in milliseconds, times in seconds.
    """

    recipe: str
    arguments: dict[str, Any]
    seed: int
    label: str = ""  # what tables call the student's row
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    # row -> metric -> the score of each example, or what a metric that is not a mean is computed from: see intervals
    examples: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    # row -> temperature, and reliability before and after it, of a task with probabilities: see `tasks.calibration`
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric_names: list[str] = field(default_factory=list)  # those in tables
    terms: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # row -> logs of the loss and its terms
    evaluations: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # row -> metrics while training
    parameters: dict[str, int] = field(default_factory=dict)  # also "projectors": trained beside the student, not saved
    size_mib: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # row -> batch -> median, spread
    latency_length: int = 0  # tokens of each text whose latency was measured
    latency_threads: int = 0  # CPU threads; a launcher sets one for each process. 0: an earlier version did not say
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)  # of a training step, a live teacher included
    peak_mib: dict[str, float] = field(default_factory=dict)  # most memory while training, without mapped files
    skipped_steps: dict[str, int] = field(default_factory=dict)  # row -> steps without a finite loss or gradient
    digests: dict[str, str] = field(default_factory=dict)  # of models and data, which a fair comparison shares
    # whether the student learned from cached teacher outputs or from a live teacher; None from outputs in the data
    stored_teacher: bool | None = None
    student_map: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    created: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "Record":
        """Read a record; raises :class:`UserError` where the file is none."""
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder: expected the record.json of a run")
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the record.json of a run: check its path")
        try:
            record = cls(**read_json(path))
            reason = record._why_unusable()
        except (DamagedError, AttributeError, TypeError) as error:
            reason = one_line(error, None).removeprefix(f"{path}: ")
        if reason:
            raise DamagedError(f"{path}: not a record of a run ({reason})")
        return record

    def _why_unusable(self) -> str:
        """Why no table can show this record; empty where one can."""
        if not isinstance(self.metrics, dict) or not self.metrics or not self.metric_names:
            return "it has no metrics"
        for role, metrics in self.metrics.items():
            if self.metric_names[-1] not in metrics:
                return f"it has no {self.metric_names[-1]} of the {role}"
            if role == "teacher" and role not in self.parameters:  # its outputs are in the data
                continue
            for name in ("parameters", "size_mib"):
                if role not in getattr(self, name):
                    return f"it has no {name} of the {role}"
        missing = [name for name in ("torch", "transformers") if name not in self.versions]
        return f"it has no version of {missing[0]}" if missing else ""


TIMINGS = (
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
)  # logged beside the metrics
ROWS = {"teacher": "teacher", "baseline": "student without distillation", "student": "student with {losses}"}
UNTRAINED = {"teacher": "given", "baseline": "not trained"}  # without labels a baseline cannot train
LATENCY = "median ± half the interquartile range"  # see `itrd_nlp.export.latency.summary`


def run_table(record: Record) -> Table:
    """The table of one record: metrics, size, latency and training time of each model."""
    names = record.metric_names
    last = metric_title(names[-1])
    columns = ["", *(metric_title(name) for name in names)]
    columns += [f"best {last} of all epochs"] if record.evaluations else []
    columns += ["parameters", "MiB", "ms, batch 1", "ms, batch 32", "training, s"]
    length = f", {record.latency_length} tokens" if record.latency_length else ""
    count = record.latency_threads
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    timed = f"; latency in fp32 on the CPU{threads}{length}, {LATENCY}" if record.latency_ms else ""
    caption = f"`{record.recipe}`, seed {record.seed} ({origin([record])}{timed}):"
    return Table(caption, columns, [_row(record, role, names) for role in ROWS if role in record.metrics])


def _row(record: Record, role: str, names: Sequence[str]) -> list[str]:
    losses = " + ".join(record.arguments.get("losses", {"itrd": {}}))
    cells = [ROWS[role].format(losses=losses or "its labels alone")]
    scores = record.metrics[role]
    cells += [f"{scores[name]:.{_decimals(record, name)}f}" if name in scores else "" for name in names]
    if record.evaluations:
        best = best_epoch([record], role)
        cells.append("" if best is None else f"{best:.2f}")
    has_model = role in record.parameters  # not a teacher whose outputs are in the data
    cells += [f"{record.parameters[role]:,}", f"{record.size_mib[role]:.1f}"] if has_model else ["", ""]
    times = record.latency_ms.get("student" if role == "baseline" else role)  # the baseline is the same network
    for batch in ("1", "32"):
        cells.append(f"{times[batch]['median']:.1f} ± {times[batch]['spread']:.1f}" if times else "")
    return [*cells, f"{record.seconds[role]:.0f}" if role in record.seconds else UNTRAINED.get(role, "")]


def _decimals(record: Record, metric: str) -> int:
    """:func:`decimals`; four of a share, as the metrics of a user's own trainer may be."""
    values = [scores[metric] for scores in record.metrics.values() if metric in scores]
    if metric in ERROR_METRICS:
        return decimals(metric, values)
    return 4 if "task" not in record.arguments and all(abs(value) <= 1 for value in values) else 2


def decimals(metric: str, values: Iterable[float]) -> int:
    """Two of a percentage; of an error, which has the labels' scale, as many as show three digits of the least."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)] if metric in ERROR_METRICS else []
    return max(2, 2 - math.floor(math.log10(min(sizes, default=1.0))))


def shown(metric: str, value: float) -> str:
    """A score as tables show it, with its :func:`decimals`."""
    return f"{value:.{decimals(metric, [value])}f}"


def calibration_table(record: Record) -> Table:
    """How well each model's probabilities fit the labels, as they are and with its temperature."""
    measures = {"ece": "ECE, %", "brier": "Brier"}
    rows = []
    for role, result in record.calibration.items():
        for when, name in (("before", "as they are"), ("after", f"temperature {result['temperature']:.3f}")):
            values = {key: value for key, value in result[when].items() if key != "accuracy@100"}
            cells = [f"{value:.4f}" if key == "brier" else f"{value:.2f}" for key, value in values.items()]
            measures |= {key: f"accuracy at {key.partition('@')[2]} %" for key in values if "@" in key}
            rows.append([f"{role}, {name}", *cells])
    caption = (
        "Probabilities, and the accuracy of the most confident predictions; each half of the validation data has the "
        "temperature of the other half, those shown are of all:"
    )
    return Table(caption, ["", *measures.values()], rows)


def best_epoch(records: Sequence[Record], role: str) -> float | None:
    """The last metric at its best epoch, as a mean over seeds; None where epochs were not evaluated.

    The best epoch is chosen on the evaluation data itself.
    """
    name = records[0].metric_names[-1]
    scores = [[row[name] for row in record.evaluations.get(role, []) if name in row] for record in records]
    return float(np.mean([max(epochs) for epochs in scores])) if all(scores) else None


def short_commit(commit: str, dirty: bool | None) -> str:
    """A commit as tables show it, and whether code ran that was not committed."""
    return f"{commit[:10]}{' with changes' if dirty else ''}"


def origin(records: Sequence[Record]) -> str:
    """Data, devices, versions and commits of records."""
    parts = [", ".join(f"{value:,} {key}" for key, value in record.data.items() if value) for record in records]
    devices = [record.device for record in records]
    versions = [f"torch {r.versions['torch']}, transformers {r.versions['transformers']}" for r in records]
    commits = {short_commit(r.commit, r.dirty) for r in records if r.commit}
    each = [" or ".join(dict.fromkeys(values)) for values in (parts, devices, versions)]
    return "; ".join([*each, *([f"commit {', '.join(sorted(commits))}"] if commits else [])])
