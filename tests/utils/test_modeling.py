"""Memory that a training takes."""

import mmap

import numpy as np
import pytest
import torch

from itrd_nlp.utils import modeling
from itrd_nlp.utils.modeling import STATUS, PeakMemory

MIB = 2**20


def test_a_system_that_keeps_no_peak_has_none(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmSize:\t100 kB\nVmRSS:\t50 kB\n")
    for status in (tmp_path / "status", tmp_path / "none"):
        monkeypatch.setattr(modeling, "STATUS", status)
        assert PeakMemory(torch.device("cpu")).mib() is None


@pytest.mark.skipif(torch.cuda.is_available() or not STATUS.is_file(), reason="measured on Linux, without a GPU")
def test_a_peak_is_that_of_the_process_without_the_files_that_it_maps(tmp_path):
    """Also where a file that was mapped at the peak is gone at the end."""
    (tmp_path / "file").write_bytes(bytes(400 * MIB))
    memory = PeakMemory(torch.device("cpu"))
    before = memory.mib()
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[i] for i in range(0, len(mapped), 4096))  # all of its pages are in memory
        held = np.ones(100 * MIB, np.uint8)
        memory.update()
    assert held.sum() == 100 * MIB
    del held
    assert 60 < memory.mib() - before < 180
