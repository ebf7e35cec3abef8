"""Means of the loss's terms over the training steps that were taken, for logs."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepMeans:
    """Means of terms over steps. The terms of a step count when it ends, unless it was skipped.

    All sums stay on the device, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._batches = 0  # micro-batches of the current step
        self._step: dict[str, Tensor] = {}  # sums over them
        self.steps = self.skipped = 0  # since the last reading
        self._sums: dict[str, Tensor] = {}  # of these steps' means
        self.run_steps = self.run_skipped = 0  # of the run so far
        self._run_loss: Tensor | float = 0.0  # sum of its steps' losses

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of a micro-batch, scalars by their names."""
        for name, value in terms.items():
            self._step[name] = self._step.get(name, 0) + value.detach().float()  # FSDP gives bf16
        self._batches += 1

    def end_step(self, taken: bool) -> None:
        """End a step, which counts where it was ``taken``."""
        if not taken:
            self.skipped += 1
            self.run_skipped += 1
        elif self._batches:
            for name, value in self._step.items():
                mean = value / self._batches
                self._sums[name] = self._sums.get(name, 0) + mean
                self._run_loss = self._run_loss + mean
            self.steps += 1
            self.run_steps += 1
        self._step, self._batches = {}, 0

    def read(self) -> tuple[list[str], Tensor]:
        """Names and means of the terms since the last reading; both empty where no step was taken."""
        means = torch.stack([*self._sums.values()]) / self.steps if self.steps else torch.empty(0)
        names = [*self._sums]
        self._sums, self.steps, self.skipped = {}, 0, 0
        return names, means

    def run_loss(self) -> Tensor:
        """The mean loss over all steps that were taken, at least one."""
        return torch.as_tensor(self._run_loss) / self.run_steps
