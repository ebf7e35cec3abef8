"""What vision recipes ask of the optimizer and Trainer does not offer."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR


def milestones(optimizer: Optimizer, epochs: Sequence[float], steps_per_epoch: int) -> MultiStepLR:
    """A rate that falls to a tenth after each of ``epochs``."""
    return MultiStepLR(optimizer, [round(steps_per_epoch * epoch) for epoch in epochs])


def separate_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Move ``parameters`` into groups of their own, which start at ``rate`` and differ in nothing else."""
    moved = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in moved]
        group["params"] = [p for p in group["params"] if id(p) not in moved]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": rate})
