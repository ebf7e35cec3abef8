"""Whether ITRD on tiny batches gains from the representations of the batches before.

    python scripts/bench/memory_bank.py

The toy's student learns from the mean of each text in batches of 4, with gold labels: without distillation, with ITRD
over the 4 samples, and with ITRD over them and the last 60 (their gradient stops; they are as stale as they are old).
Beside them, batches of 16 with the same number of texts.
"""

import tempfile
from typing import Any

import torch
from common import arguments, finish, show
from torch import Tensor

from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.report import mean_std
from itrd_nlp.experiments.run import run
from itrd_nlp.losses import LOSSES
from itrd_nlp.losses.base import Representation, Shapes
from itrd_nlp.losses.itrd import ITRDLoss

REMEMBERED = 60


class Remembering(ITRDLoss):
    """ITRD whose statistics include the last ``REMEMBERED`` samples."""

    def __init__(self, shapes: Shapes, **options: Any):
        super().__init__(shapes, **options)
        self.recent: list[tuple[tuple[Tensor, ...], ...]] = []

    def terms(self, student: Representation, teacher: Representation, batch: Any) -> dict[str, Tensor]:
        now = (student.projected, student.features, teacher.features)
        old = self.recent[: REMEMBERED // len(teacher.features[0])]
        joined = [
            tuple(torch.cat([layer, *(then[kind][i] for then in old)]) for i, layer in enumerate(layers))
            for kind, layers in enumerate(now)
        ]
        self.recent = [tuple(tuple(layer.detach() for layer in layers) for layers in now), *old]
        together = student._replace(projected=joined[0], features=joined[1])
        return super().terms(together, teacher._replace(features=joined[2]), batch)


def main() -> None:
    options = arguments(str(__doc__).partition("\n")[0])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked = options.parse_args()
    sides = {
        "without distillation, batches of 4": (ITRDLoss, 4, "{}"),
        "ITRD, batches of 4": (ITRDLoss, 4, "{itrd: {}}"),
        "ITRD, batches of 4 and the last 60": (Remembering, 4, "{itrd: {}}"),
        "ITRD, batches of 16": (ITRDLoss, 16, "{itrd: {}}"),
    }
    scores: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for seed in asked.seeds:
            for number, (name, (loss, batch, losses)) in enumerate(sides.items()):
                LOSSES["itrd"] = loss
                words = {
                    "losses": losses, "pooling": "mean", "baseline": "false", "latency": "false", "seed": seed,
                    "per_device_train_batch_size": batch, "output_dir": f"{folder}/{seed}-{number}",
                    "shared_dir": f"{folder}/shared", "teacher_cache": f"{folder}/cache", "disable_tqdm": "true",
                }  # fmt: skip
                record = run(*parse("toy/t1-itrd", [f"--{key}={value}" for key, value in words.items()]))
                scores[name].append(record.metrics["student"]["f1"])
    table = show(["", "F1"], [[name, mean_std(values)] for name, values in scores.items()])
    finish("memory_bank", {"f1": scores}, {"table": table}, asked)


if __name__ == "__main__":
    main()
