"""The machine, the libraries and the commit that a result comes from."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # never at run time: `itrd doctor` works without it

LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "numpy")


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
    import torch
    from torch import distributed

    if device.type == "cuda":  # one for each process, of those that it sees
        processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return f"{device.type}: {model}, {threads} thread{'s' * (threads > 1)}"


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the package's checkout and whether it has changes; None where it is not a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "environment.py") is None:
        return None, None
    status = git("status", "--porcelain", "--", ":/", ":(top,exclude)scripts/results")  # other runs' records
    return git("rev-parse", "HEAD"), None if status is None else bool(status)


def installed(name: str) -> str | None:
    """The version of a library, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def computes_bf16(use_cpu: bool = False) -> bool:
    """Whether the device computes in bfloat16 by itself; elsewhere bf16 is emulated and slower than fp32."""
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
