"""What this machine has for distilling, and what to fix first."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

from itrd_nlp.utils.environment import installed
from itrd_nlp.utils.errors import first_line

ROOM = 2 * 2**30  # bytes below which a folder is too full to begin
PATIENCE = 3.0  # seconds for the Hub to answer


class Check(NamedTuple):
    """One line: what was looked at and found. ``advice`` says what to do; ``must`` that nothing works before."""

    name: str
    found: str
    advice: str = ""
    must: bool = False

    def __str__(self) -> str:
        mark = "FIX" if self.must else "note" if self.advice else "ok"
        return f"{mark:4}  {self.name}: {self.found}{f' -- {self.advice}' if self.advice else ''}"


def examine(output_dir: Path, teacher_cache: str | None = None) -> list[Check]:
    """Look at versions, devices, memory, disk and the Hub.

    Args:
        output_dir: where runs would be written; it need not be there yet.
        teacher_cache: ``auto`` or a folder, whose cached teacher outputs are read and compared with their checksums.
    """
    cached = [] if teacher_cache is None else _cached(teacher_cache)
    return [*_versions(), *_devices(), _memory(), *_disk(output_dir), _hub(), *cached]


def _versions() -> Iterator[Check]:
    from packaging.requirements import Requirement

    python = ".".join(map(str, sys.version_info[:3]))
    try:
        needed = [Requirement(line) for line in requires("itrd_nlp") or []]
    except PackageNotFoundError:
        yield Check("python", python)
        yield Check("itrd_nlp", "not installed, only on the path", "pip install . in its folder, to check versions")
        return
    yield Check("python", python)
    missing: dict[str, list[str]] = {}
    for each in needed:
        found = installed(each.name)
        extra = str(each.marker).partition('"')[2].rstrip('"') if each.marker else ""
        if extra in ("dev", "test"):  # for work on the package itself
            continue
        if found is None and extra:
            missing.setdefault(extra, []).append(each.name)
        elif found is None or not each.specifier.contains(found, prereleases=True):
            target = f"pip install '{each.name}{each.specifier}'"
            yield Check(each.name, found or "missing", f"expected {each.specifier}: {target}", must=not extra)
        else:
            yield Check(each.name, found)
    for extra, names in missing.items():
        yield Check(f"extra {extra}", f"without {', '.join(names)}", f"if you need it: pip install 'itrd_nlp[{extra}]'")


def _devices() -> Iterator[Check]:
    import torch

    from itrd_nlp.utils.environment import computes_bf16

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    for place in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(place)
        yield Check(f"GPU {place}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield Check(
            "GPU", f"there is one that torch {torch.__version__} cannot use", "install torch for CUDA", must=True
        )
    few = f"OMP_NUM_THREADS={cores} would use them all" if threads < cores else ""
    yield Check("CPU", f"{cores} cores, torch uses {threads}", few)
    slow = "runs use fp32, which is slower but right" if not computes_bf16() else ""
    yield Check("bf16", "not computed by the hardware" if slow else "computed by the hardware", slow)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    little = memory.available < ROOM
    return Check("memory", found, "too little for BERT-base: close other programs" if little else "")


def _disk(output_dir: Path) -> Iterator[Check]:
    from huggingface_hub.constants import HF_HOME

    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER

    folders = {"output folder": output_dir, "Hub's cache": Path(HF_HOME), "teacher cache": AUTO_FOLDER}
    options = {"output folder": "--output_dir", "Hub's cache": "HF_HOME", "teacher cache": "--teacher_cache"}
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        advice = ""
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            advice = f"{existing} cannot be written: name another with {options[name]}"
        elif free < ROOM:
            advice = f"make room, or name another with {options[name]}"
        yield Check(name, f"{folder}, {free / 2**30:.1f} GiB free", advice, must=bool(advice))


def _cached(teacher_cache: str) -> Iterator[Check]:
    """Each folder of cached teacher outputs: its bytes, its last use, and the files that are not what was written."""
    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER, entries, gib
    from itrd_nlp.distillation.folder_locks import lock_in_use
    from itrd_nlp.distillation.shards import damaged

    root = AUTO_FOLDER if teacher_cache == "auto" else Path(teacher_cache).expanduser()
    found = entries(root)
    total = sum(entry.size for entry in found)
    yield Check("cached teacher outputs", f"{len(found)} in {root}, {gib(total)}")
    for entry in found:
        lock = lock_in_use(entry.folder)  # nobody evicts it meanwhile; None where somebody has
        names = [path.name for path in damaged(entry.folder)] if lock else []
        advice = f"damaged, delete it and the next run makes it again: {', '.join(names)}" if names else ""
        yield Check(str(entry.folder), f"{gib(entry.size)}, last used {entry.last_used}", advice, must=bool(names))


def _hub() -> Check:
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Check("Hub", "offline, as HF_HUB_OFFLINE says: models and data come from folders and caches")
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=PATIENCE):
            return Check("Hub", f"{ENDPOINT} answers")
    except urllib.error.HTTPError as error:
        return Check("Hub", f"{ENDPOINT} answers with {error.code}")
    except OSError as error:
        advice = "name folders and files, and set HF_HUB_OFFLINE=1, so that nothing waits for it"
        return Check("Hub", f"{ENDPOINT} cannot be reached ({first_line(error)})", advice)
