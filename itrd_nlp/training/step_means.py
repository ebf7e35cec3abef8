"""What is logged of the loss's terms: their means over the training steps that were taken."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepMeans:
    """Means of terms over steps. Those of a step count when it ends, unless it was skipped.

    All sums stay on the device, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._step: dict[str, Tensor] = {}  # sums over the micro-batches of the step that runs
        self._batches = 0
        self._sums: dict[str, Tensor] = {}  # of the steps' means, since the last reading
        self._run: dict[str, Tensor] = {}  # the same, of all steps
        self.steps = self.skipped = 0  # since the last reading
        self.run_steps = self.run_skipped = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of a micro-batch, scalars by their names."""
        for name, value in terms.items():
            self._step[name] = self._step.get(name, 0) + value.detach()
        self._batches += 1

    def end_step(self, taken: bool) -> None:
        """End a step, which counts where it was ``taken``."""
        if taken and self._batches:
            for name, value in self._step.items():
                mean = value / self._batches
                self._sums[name] = self._sums.get(name, 0) + mean
                self._run[name] = self._run.get(name, 0) + mean
            self.steps += 1
            self.run_steps += 1
        self.skipped += not taken
        self.run_skipped += not taken
        self._step, self._batches = {}, 0

    def read(self) -> tuple[list[str], Tensor]:
        """Names and means of the terms since the last reading; at least one step was taken since."""
        names, sums = [*self._sums], torch.stack([*self._sums.values()])
        means = sums / self.steps
        self.restart()
        return names, means

    def restart(self) -> None:
        """Forget what has been logged."""
        self._sums, self.steps, self.skipped = {}, 0, 0

    def run_mean(self) -> Tensor:
        """The mean of the whole loss over all steps that were taken, at least one."""
        return torch.stack([*self._run.values()]).sum() / self.run_steps
