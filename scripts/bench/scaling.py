"""How cost grows: the losses and a step with samples, width and layers, the cache with data, and what ranks cost.

    python scripts/bench/scaling.py

Each sweep ends in the exponent of a power law fitted to it: 1 is proportional. Ranks are processes on this machine,
with one thread and as many texts each.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, finish, show, summary
from datasets import disable_progress_bars
from step_cost import bert_workload, stepper, trainer
from transformers import BertConfig, BertForQuestionAnswering

from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.teacher_cache import TeacherCache
from itrd_nlp.export.latency import take_turns
from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.losses.base import Representation
from itrd_nlp.utils.modeling import PAD_MULTIPLE

SAMPLES, WIDTHS, LAYERS = (8, 16, 32, 64, 128, 256, 1024, 4096), (96, 192, 384, 768, 1536), (1, 2, 3, 6, 12)
BATCHES, STEP_WIDTHS, STEP_LAYERS = (4, 8, 16, 32), (192, 384, 768), (1, 2, 3, 6)
EXAMPLES, RANKS = (2000, 8000, 32000), (1, 2)


def losses(samples: int, width: int, layers: int) -> Callable[[], None]:
    """Forward and backward of both losses of ITRD, projections included."""
    widths = (width,) * layers
    made = build_losses({"itrd": {}}, Shapes(widths, widths, ("logits",)))["itrd"]
    logits = {"logits": torch.zeros(1, 2)}
    teacher = Representation(logits, tuple(torch.randn(samples, width) for _ in widths), None)
    student = Representation(logits, tuple(torch.randn(samples, width, requires_grad=True) for _ in widths), None)
    return lambda: torch.stack(list(made(student, teacher, {}).values())).sum().backward()


def teacher(width: int, layers: int) -> BertForQuestionAnswering:
    """A BERT of random weights and a small vocabulary, so that its layers are what is measured."""
    return BertForQuestionAnswering(
        BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            intermediate_size=4 * width,
            attention_probs_dropout_prob=0.0,
        )
    )


def step(width: int, layers: int, batch: int) -> Callable[[], None]:
    """A training step with ITRD and a stored teacher of as many layers."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(bert_workload(lambda: teacher(width, layers), layers, batch), "itrd", Path(folder))
        made.cache.read([0])  # the files are mapped: their names may go
    return stepper(made)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def sweep(name: str, sizes: Sequence[int], make: Callable[[int], Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds at each size, the sizes taking turns."""
    times = take_turns({str(size): make(size) for size in sizes}, repeats)
    medians = [summary(times[str(size)])["median"] for size in sizes]
    half = len(sizes) // 2
    fitted = {
        "exponent": exponent(sizes, medians),
        "exponent_of_the_larger_half": exponent(sizes[half:], medians[half:]),
    }
    show([name, *map(str, sizes), "exponent", "larger half"], [["ms", *(1e3 * m for m in medians), *fitted.values()]])
    return {"sizes": list(sizes), "seconds": [summary(times[str(size)]) for size in sizes], **fitted}


def cache(examples: int, folder: Path, width: int = 768, layers: int = 3) -> tuple[TeacherCache, Callable[[], None]]:
    """Writing what a teacher says about so many examples; the teacher itself takes no time."""
    features = torch.randn(64, width)

    def draw(places: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"attention_mask": torch.ones(len(places), 1, dtype=torch.long)}

    def ask(batch: Any) -> Representation:
        count = len(batch["attention_mask"])
        return Representation({}, (features[:count],) * layers, batch["attention_mask"].bool())

    extractor = FeatureExtractor([f"layer.{i}" for i in range(layers)], (), Pooling())
    sizes = dict.fromkeys(extractor.feature_outputs, examples * width * 2)
    made = TeacherCache(folder, {"examples": examples}, sizes, examples, examples, torch.float16)
    made.prepare()
    budget = 64 * PAD_MULTIPLE  # 64 examples

    def write() -> None:
        for file in made.folder.rglob("*.safetensors"):
            file.unlink()
        made.fill(made.missing(range(made.count)), draw, ask, extractor, None, budget, show=False)

    return made, write


def reading(made: TeacherCache) -> Callable[[], None]:
    """Sixty-four batches of 32 examples from anywhere."""
    batches = np.random.default_rng(0).integers(0, made.examples, (64, 32)).tolist()
    return lambda: [made.read(batch) for batch in batches] and None


def rank_step(repeats: int) -> None:
    """One of several processes: median seconds of a step of 8 texts each, printed by the first."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        made = trainer(bert_workload(lambda: teacher(384, 3), 3, batch=8), "itrd, live teacher", Path(folder))
    loader, model = iter(made.get_train_dataloader()), made.model_wrapped
    batch = made._prepare_inputs(next(loader))

    def one() -> None:
        made.training_step(model, dict(batch))
        made.optimizer.step()
        made.model.zero_grad()

    times = take_turns({"step": one}, repeats)["step"]
    if made.args.process_index == 0:
        print(f"\nmedian {summary(times)['median']}", flush=True)
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)  # gloo aborts at exit at random


def ranks(count: int, repeats: int) -> float:
    words = ["--nproc_per_node", str(count), __file__, "--rank", "--repeats", str(repeats)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.rpartition("median ")[2])


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rank", action="store_true", help="be one of several processes, and end")
    options = parser.parse_args()
    disable_progress_bars()
    if options.rank:
        rank_step(options.repeats)
    repeats = options.repeats
    sweeps = {
        "losses, samples": sweep("losses, samples (768 wide, 3 layers)", SAMPLES, lambda n: losses(n, 768, 3), repeats),
        "losses, width": sweep("losses, width (32 samples, 3 layers)", WIDTHS, lambda d: losses(32, d, 3), repeats),
        "losses, layers": sweep("losses, layers (32 samples, 768 wide)", LAYERS, lambda n: losses(32, 768, n), repeats),
        "step, batch": sweep("step, texts (384 wide, 3 layers)", BATCHES, lambda b: step(384, 3, b), repeats),
        "step, width": sweep("step, width (16 texts, 3 layers)", STEP_WIDTHS, lambda d: step(d, 3, 16), repeats),
        "step, layers": sweep("step, layers (16 texts, 384 wide)", STEP_LAYERS, lambda n: step(384, n, 16), repeats),
    }
    with tempfile.TemporaryDirectory() as folder:
        caches = {n: cache(n, Path(folder) / str(n)) for n in EXAMPLES}
        sweeps["cache, writing"] = sweep("cache, examples written", EXAMPLES, lambda n: caches[n][1], 2)
        sweeps["cache, reading"] = sweep(
            "cache, 2048 examples read of", EXAMPLES, lambda n: reading(caches[n][0]), repeats
        )
    times = [ranks(count, repeats) for count in RANKS]
    show(["ranks of 8 texts", *map(str, RANKS)], [["ms a step", *(1e3 * t for t in times)]])
    sweeps["ranks"] = {"sizes": list(RANKS), "seconds": times, "texts": 8, "cores": os.cpu_count()}
    exponents = {name: swept["exponent"] for name, swept in sweeps.items() if "exponent" in swept}
    finish("scaling", exponents, {"sweeps": sweeps}, options)


if __name__ == "__main__":
    main()
