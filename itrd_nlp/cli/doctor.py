"""A report on the machine: versions, devices, disk, the Hub and cached teacher outputs."""

import os
import platform
import shutil
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple

from itrd_nlp.utils.environment import computes_bf16, installed
from itrd_nlp.utils.errors import one_line
from itrd_nlp.utils.io import existing_parent

GIB = 2**30
LEAST_DISK = 2 * GIB  # bytes
PATIENCE = 3.0  # seconds for the Hub to answer


class Check(NamedTuple):
    """One line of the report; ``must``: fix it before anything else."""

    name: str
    value: str
    advice: str = ""
    must: bool = False

    def __str__(self) -> str:
        mark = "FIX" if self.must else "note" if self.advice else "ok"
        return f"{mark:4}  {self.name}: {self.value}{f' -- {self.advice}' if self.advice else ''}"


def versions() -> Iterator[Check]:
    """Installed versions against those that the package requires."""
    from packaging.requirements import Requirement

    yield Check("python", platform.python_version())
    unmet = defaultdict(list)  # extra -> libraries
    for requirement in map(Requirement, requires("itrd_nlp") or []):
        name, specifier, version = requirement.name, requirement.specifier, installed(requirement.name)
        extra = str(requirement.marker or "").partition('"')[2].rstrip('"')
        if extra in ("dev", "docs", "test"):  # for work on the package itself
            continue
        if version and specifier.contains(version, prereleases=True):
            yield Check(name, version)
        elif extra:
            unmet[extra].append(f"{name} {version or 'missing'}")
        else:
            yield Check(name, version or "missing", f"pip install '{name}{specifier}'", must=True)
    for extra, names in unmet.items():
        yield Check(f"extra {extra}", ", ".join(names), f"if you need it: pip install 'itrd_nlp[{extra}]'")


def devices() -> Iterator[Check]:
    """GPUs, CPU cores, memory and bf16."""
    import psutil
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Check(f"GPU {index}", f"{device.name}, {device.total_memory / GIB:.0f} GiB")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield Check("GPU", f"torch {torch.__version__} cannot use it", "install torch for CUDA", must=True)
    yield Check("CPU", f"{psutil.cpu_count()} cores, torch uses {torch.get_num_threads()} (OMP_NUM_THREADS)")
    yield Check("memory", f"{psutil.virtual_memory().available / GIB:.1f} GiB free")
    yield Check("bf16", "computed by the hardware" if computes_bf16() else "emulated, so runs use fp32")


def disk(folder: Path, option: str) -> Check:
    """Free space of a folder, which need not exist; ``option`` names another one."""
    existing = existing_parent(folder)
    free, advice = shutil.disk_usage(existing).free, ""
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = f"{existing} cannot be written: name another with {option}"
    elif free < LEAST_DISK:
        advice = f"make room, or name another with {option}"
    return Check(f"disk for {option}", f"{folder}, {free / GIB:.1f} GiB free", advice, must=bool(advice))


def hub() -> Check:
    """Whether the Hub answers, unless HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Check("Hub", "offline (HF_HUB_OFFLINE): models and data come from folders and caches")
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except OSError as error:
        advice = "name folders and files, and set HF_HUB_OFFLINE=1, so that nothing waits for it"
        return Check("Hub", f"{ENDPOINT} does not answer ({one_line(error)})", advice)
    return Check("Hub", f"{ENDPOINT} answers")


def cached_outputs(root: Path) -> Iterator[Check]:
    """Size and last use of each folder of cached teacher outputs, and its files with a wrong checksum."""
    from itrd_nlp.distillation.cache_folders import entries, gib
    from itrd_nlp.distillation.folder_locks import lock_in_use
    from itrd_nlp.distillation.shards import damaged

    folders = entries(root)
    yield Check("cached teacher outputs", f"{len(folders)} in {root}, {gib(sum(entry.size for entry in folders))}")
    for entry in folders:
        lock = lock_in_use(entry.folder)  # no other process evicts it meanwhile; None where one has
        names = [path.name for path in damaged(entry.folder)] if lock else []
        advice = f"damaged, delete it and the next run makes it again: {', '.join(names)}" if names else ""
        yield Check(str(entry.folder), f"{gib(entry.size)}, last used {entry.last_used}", advice, must=bool(names))
