"""What vision recipes ask of the optimizer and Trainer does not offer."""

import math
from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR


def milestones(optimizer: Optimizer, epochs: Sequence[float], steps_per_epoch: float) -> MultiStepLR:
    """A rate that falls to a tenth after each of ``epochs``; the last batch of an epoch may be a small one."""
    return MultiStepLR(optimizer, [round(math.ceil(steps_per_epoch) * epoch) for epoch in epochs])


def separate_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Move ``parameters`` into groups of their own, which start at ``rate`` and differ in nothing else."""
    moved = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in moved]
        group["params"] = [p for p in group["params"] if id(p) not in moved]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": rate})
