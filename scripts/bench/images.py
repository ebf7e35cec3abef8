"""What a training step costs with each method for images, and our loop beside the usual one of the papers.

    python scripts/bench/images.py

The first table: a step of two CIFAR-100 pairs at batch 64 with a live teacher, every method through the trainer; the
rows take turns in one process, peak memory is taken in processes of their own. The second: images per second through
``ITRDTrainer``, and through the structure of the papers' code: images transformed one by one as PIL images in two
worker processes, and a plain loop in fp32.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import arguments, finish, ratio, show, summary
from PIL import Image
from step_cost import losses_alone, peak_mib, print_peak, ready, stepper
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.export.latency import take_turns
from itrd_nlp.losses import correlation_loss, mutual_information_loss
from itrd_nlp.tasks.image_classification.images import MemoryImages
from itrd_nlp.tasks.image_classification.task import ImageTask
from itrd_nlp.vision.models import load_image_model
from itrd_nlp.vision.preprocessing import Preprocessing

BATCH, EXAMPLES, CLASSES = 64, 50_000, 100
PAIRS = {
    "resnet56-resnet20": ("cifar_resnet56", "cifar_resnet20"),
    "wrn_40_2-wrn_16_2": ("cifar_wrn_40_2", "cifar_wrn_16_2"),
}
KD = {"kd": {"temperature": 4.0}}
ROWS: dict[str, dict[str, Any]] = {  # losses; without any it trains alone
    "training alone": {},
    "KD": KD,
    "ITRD (L_corr)": {"itrd": {"beta_mi": 0.0}},
    "ITRD": {"itrd": {"mi_form": "raw"}},
    "ITRD + KD": {"itrd": {"mi_form": "raw"}, **KD},
    "CRD": {"crd": {}},
    "WCoRD": {"wcord": {}},
    "ReviewKD": {"reviewkd": {}},
    "SRD": {"srd": {}},
    "VkD": {"vkd": {}},
}
CIFAR = Preprocessing.plain(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def pixels(count: int) -> np.ndarray:
    """(count, 32, 32, 3) random images."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def trainer(pair: str, row: str, folder: Path, **options: Any) -> ITRDTrainer:
    """The trainer of a row, ready to step."""
    names = [str(i) for i in range(CLASSES)]
    teacher, student = [load_image_model(name, names, seed=0)[0] for name in PAIRS[pair]]
    data = MemoryImages(
        torch.from_numpy(pixels(EXAMPLES)).permute(0, 3, 1, 2), torch.arange(EXAMPLES) % CLASSES, CIFAR, augment=True
    )
    usual = {
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "decay_all": True,
    }
    made = ITRDTrainer(
        model=student,
        teacher_model=teacher if ROWS[row] else None,
        args=ITRDArguments(
            str(folder), per_device_train_batch_size=BATCH, layer_map="last", disable_tqdm=True, max_grad_norm=0,
            save_strategy="no", **{**usual, "losses": ROWS[row] or {"itrd": {}}, **options},
        ),
        train_dataset=data,
        data_collator=ImageTask.collator,
    )  # fmt: skip
    return ready(made)


def measure(pair: str, repeats: int, folder: Path) -> dict[str, Any]:
    """All rows of a pair."""
    trainers = {row: trainer(pair, row, folder) for row in ROWS}
    steps = {row: stepper(made) for row, made in trainers.items()}
    alone = {row: losses_alone(made) for row, made in trainers.items() if ROWS[row]}
    times = take_turns({**steps, **{f"losses of {row}": both for row, (both, _) in alone.items()}}, repeats, warmup=2)
    result = {}
    for row in ROWS:
        result[row] = {
            "seconds": summary(times[row]),
            "over_alone": ratio(times[row], times["training alone"]),
            "losses_seconds": summary(times[f"losses of {row}"]) if ROWS[row] else None,
            "losses_mib": alone[row][1] if ROWS[row] else None,
            "parameters": sum(p.numel() for p in trainers[row].model.losses.parameters()),
        }
    trainers.clear(), steps.clear(), alone.clear()
    for row in ROWS:
        result[row]["peak_mib"] = peak_mib(__file__, "--peak", row, "--pairs", pair, processes=1)
    return result


class OneByOne(Dataset):
    """CIFAR as torchvision serves it: a PIL image at a time."""

    def __init__(self, count: int):
        self.pixels = pixels(count)
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(CIFAR.mean, CIFAR.std)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), place % CLASSES


def usual_loop(pair: str, count: int) -> Callable[[], float]:
    """Seconds of ``count`` batches by the structure of the papers' code, call by call."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [str(i) for i in range(CLASSES)]
    teacher, student = [load_image_model(name, names, seed=0)[0].timm_model.to(device) for name in PAIRS[pair]]
    embed = nn.Linear(student.num_features, teacher.num_features).to(device)
    optimizer = torch.optim.SGD([*student.parameters(), *embed.parameters()], 0.05, 0.9, weight_decay=5e-4)
    data = OneByOne(count * BATCH)
    teacher.eval(), student.train()

    def epoch() -> float:
        batches = iter(DataLoader(data, BATCH, shuffle=True, num_workers=2))
        first = next(batches)  # starting workers is not a part of it
        started = time.perf_counter()
        for images, labels in itertools.chain([first], batches):
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                t = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
            s = student.forward_head(student.forward_features(images), pre_logits=True)
            z = embed(s)
            loss = F.cross_entropy(student.get_classifier()(s), labels) + 2 * correlation_loss(z, t, 1.01)
            loss = loss + mutual_information_loss(s if s.shape == t.shape else z, t, "raw")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - started

    return epoch


def our_loop(pair: str, count: int, folder: Path, **options: Any) -> Callable[[], float]:
    """Seconds of ``count`` batches through the trainer, call by call."""

    def epoch() -> float:
        made = trainer(pair, "ITRD", folder, max_steps=count, **options)
        started = time.perf_counter()
        made.train()
        return time.perf_counter() - started

    return epoch


def throughput(pair: str, repeats: int, count: int, folder: Path) -> dict[str, Any]:
    """Images per second of both loops; making models and data is left out."""
    loops = {"usual loop, fp32": usual_loop(pair, count), "ours": our_loop(pair, count, folder)}
    loops["ours, fp32"] = our_loop(pair, count, folder, bf16=False)
    turns = [{name: loop() for name, loop in loops.items()} for _ in range(repeats + 1)][1:]  # the first warms up
    times = {name: [turn[name] for turn in turns] for name in loops}
    return {
        name: {
            "images_per_second": summary([count * BATCH / t for t in took]),
            "over_usual": ratio(times["usual loop, fp32"], took),
        }
        for name, took in times.items()
    }


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=30, help="of each loop, in the second table")
    parser.add_argument("--peak", help="print the peak memory of one row and end")
    options: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.peak:
            print_peak(lambda: trainer(options.pairs[0], options.peak, folder))
            return
        details: dict[str, Any] = {"steps": {}, "throughput": {}}
        details["bf16"] = ITRDArguments(str(folder)).bf16  # where the machine computes in it
        for pair in options.pairs:
            steps = details["steps"][pair] = measure(pair, options.repeats, folder)
            print(f"{pair}, batch {BATCH}, n = {options.repeats}")
            columns = [
                "",
                "s a step",
                "±",
                "over training alone",
                "losses alone, ms",
                "their MiB",
                "parameters",
                "peak MiB",
            ]
            lines = []
            for row, found in steps.items():
                losses = [found["losses_seconds"]["median"] * 1000, found["losses_mib"]] if ROWS[row] else ["", ""]
                took = [found["seconds"]["median"], found["seconds"]["spread"], found["over_alone"]["median"]]
                lines.append([row, *took, *losses, found["parameters"], found["peak_mib"]])
            show(columns, lines)
            loops = details["throughput"][pair] = throughput(pair, options.repeats, options.batches, folder)
            lines = [
                [name, x["images_per_second"]["median"], x["images_per_second"]["spread"], x["over_usual"]["median"]]
                for name, x in loops.items()
            ]
            show(["", "images a second", "±", "times the usual loop"], lines)
    first = details["throughput"][options.pairs[0]]
    headline = {
        "ours_over_usual": first["ours"]["over_usual"]["median"],
        "ours_fp32_over_usual": first["ours, fp32"]["over_usual"]["median"],
    }
    finish("images", headline, details, options)


if __name__ == "__main__":
    main()
