"""The record of a run: what was asked, what came out, and on what."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itrd_nlp.durable import read_json
from itrd_nlp.errors import DamagedError, UserError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "numpy")
# kept equal in a fair comparison, as compare.SAME_RUN is; learning rates and schedules are a method's own
SAME_TRAINING = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "tokens_per_batch",
    "bf16",
    "fp16",
    "load_best_model_at_end",
)
DIGESTS = ("teacher", "student", "training data", "validation data")  # of a record


@dataclass
class Record:
    """One run in numbers; ``metrics`` and the sizes have the rows ``teacher``, ``baseline`` and ``student``.

    Units: sizes in MiB (10^6 parameters stay a count), latencies in milliseconds, times in seconds.
    """

    recipe: str
    arguments: dict[str, Any]
    seed: int
    label: str = ""  # what tables call the student's row
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    # row -> metric -> of each example its score, or what a metric that is no mean is computed from: see intervals
    examples: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    metric_names: list[str] = field(default_factory=list)  # the ones that a table shows
    terms: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # row -> what was logged, step by step
    evaluations: dict[str, list[dict[str, float]]] = field(
        default_factory=dict
    )  # row -> what was logged while training
    parameters: dict[str, int] = field(default_factory=dict)  # also "projectors": trained beside the student, not saved
    size_mib: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # row -> batch -> median, spread
    latency_length: int = 0  # tokens of each text whose latency was measured
    seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)  # of a training step, a live teacher included
    peak_mib: dict[str, float] = field(default_factory=dict)  # most memory while training, without mapped files
    skipped_steps: dict[str, int] = field(default_factory=dict)  # row -> steps without a finite loss or gradient
    digests: dict[str, str] = field(default_factory=dict)  # of what must be equal in a fair comparison
    stored_teacher: bool | None = None  # whether the student learned from stored answers; from a live teacher otherwise
    student_map: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    created: str = ""

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record; raises :class:`UserError` in one line when the file is not one."""
        if path.is_dir():
            raise UserError(f"{path} is a folder: expected the record.json of a run")
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the record.json of a run")
        try:
            record = cls(**read_json(path))
        except (DamagedError, TypeError) as error:
            reason = " ".join(str(error).removeprefix(f"{path}: ").split())
            raise DamagedError(f"{path}: not a record of a run ({reason})") from None
        if not isinstance(record.metrics, dict) or not record.metrics:
            raise DamagedError(f"{path}: not a record of a run (it has no metrics)")
        return record


def check_same(records: Sequence[Record], budget: bool = True) -> None:
    """Raise :class:`UserError` where records are of different teachers, students, data or, if asked, budgets."""
    first_of = {record.seed: record for record in reversed(records)}  # a new head is drawn by the seed
    for record in records:
        pairs = [(what, first_of[record.seed] if what == "student" else records[0]) for what in DIGESTS]
        different = [what for what, first in pairs if record.digests.get(what) != first.digests.get(what)]
        for name in (*SAME_TRAINING, "world_size") if budget else ():
            if record.arguments.get(name) != records[0].arguments.get(name):
                different.append(name)
        if different:
            raise UserError(
                f"{records[0].recipe} and {record.recipe}, seed {record.seed}, were not made with the same "
                f"{' and '.join(different)}: expected one for all; run them again together, or add --unfair"
            )


def provenance(device: "torch.device") -> dict[str, Any]:
    """Commit, versions, device and time of a run, as fields of :class:`Record`."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": _device(device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _device(device: "torch.device") -> str:
    import torch  # here: reading records, all that `itrd report` does, needs none

    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{device.type}: {model}, {torch.get_num_threads()} threads"


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the package's own checkout and whether it has changes; None where it is not a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "record.py") is None:
        return None, None
    status = git("status", "--porcelain", "--", ":/", ":(top,exclude)scripts/results")  # other runs' records
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
