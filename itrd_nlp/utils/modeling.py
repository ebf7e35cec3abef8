"""What a model is and takes: its kind, size, limits, device, seeded weights, and the memory of its training."""

import contextlib
import ctypes
import gc
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

STATUS = Path("/proc/self/status")
PAD_MULTIPLE = 8  # of tokens: collators pad texts to it
INDEPENDENT = "multi_label_classification"  # the problem_type of a config in which several classes may hold at once


def inference_device() -> torch.device:
    """The GPU, or another accelerator, where there is one; else the CPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def input_names(model: torch.nn.Module) -> list[str]:
    """The names of what a model's ``forward`` takes."""
    return [*inspect.signature(model.forward).parameters]


def answers_questions(model: torch.nn.Module) -> bool:
    """Whether a model has a head for the start and end of an answer."""
    return "start_positions" in input_names(model)


def reads_images(model: Any) -> bool:
    """Whether a model takes pixels, and not the tokens of texts."""
    return getattr(model, "main_input_name", "") == "pixel_values"


def is_decoder(model: torch.nn.Module) -> bool:
    """Whether each token sees only those before it."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


@contextlib.contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients, then restore its mode."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what is drawn on the CPU in the block; after it, torch's random state is what it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def size_mib(model: torch.nn.Module) -> float:
    """MiB of the weights as ``save_pretrained`` stores them, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 2**20


def position_limit(model: PreTrainedModel) -> int:
    """The most tokens of a text; ``sys.maxsize`` where a model has no limit.

    A RoBERTa's table of positions starts after its padding index. A DeBERTa without a table clamps distances between
    tokens, so that texts may have any length.
    """
    if getattr(model.config, "position_biased_input", True) is False:
        return sys.maxsize
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table := getattr(module, "weight", None), torch.Tensor):
            padding = getattr(module, "padding_idx", None)
            return len(table) - (0 if padding is None else padding + 1)
    limit = getattr(model.config, "max_position_embeddings", None)  # an alias in GPT-2, of n_positions
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize  # XLNet's is -1


def window_limit(model: PreTrainedModel) -> int:
    """:func:`position_limit` as a multiple of ``PAD_MULTIPLE``."""
    return position_limit(model) // PAD_MULTIPLE * PAD_MULTIPLE


class PeakMemory:
    """The peak memory from construction on: of a GPU, or where ``device`` is a CPU of this process (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.peak, self.files = device.type == "cuda", 0.0, 0.0
        self.measures = not self.cuda and {"VmHWM:", "RssFile:"} <= {*_status()}
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif self.measures:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed
            self.files = _status()["RssFile:"]
            _reset_peak()

    def update(self) -> None:
        """Note the peak since the last call. To be called at each step: mapped files, which do not count, come and go,
        and of the time between two calls only the beginning and the end are known."""
        if not self.measures:
            return
        mib = _status()
        self.peak = max(self.peak, mib["VmHWM:"] - max(self.files, mib["RssFile:"]))
        self.files = mib["RssFile:"]
        _reset_peak()

    def mib(self) -> float | None:
        """MiB, without mapped files such as the teacher cache; None where it cannot be measured."""
        self.update()
        return torch.cuda.max_memory_allocated() / 2**20 if self.cuda else self.peak or None


def _status() -> dict[str, float]:
    """The sizes in MiB that Linux keeps of this process; none on other systems, and few in some sandboxes."""
    if not STATUS.is_file():
        return {}
    lines = [line.split() for line in STATUS.read_text().splitlines() if line.endswith("kB")]
    return {name: int(kib) / 2**10 for name, kib, _ in lines}


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # where this is not allowed, earlier peaks count too
        Path("/proc/self/clear_refs").write_text("5")
