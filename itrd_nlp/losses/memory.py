"""The memory bank of contrastive distillation: one embedding of each training example from each network."""

import math

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn

from itrd_nlp.errors import UserError


class MemoryBank(nn.Module):
    """Embeddings of all examples, and the noise-contrastive score of a batch against them (Tian et al. 2020, eq. 17).

    Both networks have a bank: the student is contrasted with the teacher's and the teacher with the student's. Every
    rank holds the same banks: embeddings are gathered before they are written. The banks are buffers, so that a
    checkpoint keeps them; while a batch is written, a bank is there twice.

    Args:
        examples: N, of the training data.
        width: of an embedding.
        negatives: K, drawn uniformly with replacement from the other examples of the training data.
        temperature: by which inner products are divided.
        momentum: share of the old embedding that an update keeps.
        labels: (N,) classes of the examples; negatives are of other classes then.

    Raises:
        UserError: all examples are of one class.
    """

    student: Tensor
    teacher: Tensor
    log_z: Tensor
    by_class: Tensor
    first: Tensor
    alike: Tensor

    def __init__(
        self,
        examples: int,
        width: int,
        negatives: int,
        temperature: float,
        momentum: float,
        labels: Tensor | None = None,
    ):
        super().__init__()
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        bound = 1 / math.sqrt(width / 3)
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(examples, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), torch.nan))  # log normalisers, fixed by the first batch
        labels = torch.arange(examples) if labels is None else labels
        counts = labels.bincount()
        if counts.max() == examples:
            raise UserError(
                f"all {examples} training examples are of one class: expected others to draw negatives from"
            )
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)  # places, class by class
        self.register_buffer("first", (counts.cumsum(0) - counts)[labels], persistent=False)  # where a class starts
        self.register_buffer("alike", counts[labels], persistent=False)  # how many are of an example's class

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Contrast a batch with the banks, then write it into them.

        Args:
            student, teacher: (n, width) embeddings of length 1.
            index: (n,) places of the examples in the training data.

        Returns:
            Scalar: the sum of both networks' losses, each a mean over the batch.
        """
        columns = torch.cat([index[:, None], self._others(index)], 1)
        total = student.new_zeros(())
        for side, (anchor, bank) in enumerate([(student, self.teacher), (teacher, self.student)]):
            # all N scores, of which K + 1 are taken: gathering the embeddings themselves would move width times more
            scores = (anchor @ bank.T / self.temperature).gather(1, columns)
            total = total + self._contrast(scores, side)
        self._write(student.detach(), teacher.detach(), index)
        return total

    def _others(self, index: Tensor) -> Tensor:
        """(n, K) places of examples of other classes."""
        alike, first = self.alike[index, None], self.first[index, None]
        room = len(self.student) - alike
        drawn = torch.randint(2**48, (len(index), self.negatives), device=index.device) % room
        return self.by_class[drawn + alike * (drawn >= first)]

    def _contrast(self, scores: Tensor, side: int) -> Tensor:
        """Noise-contrastive estimation on (n, 1 + K) scores, in logarithms: h = p / (p + K/N), p = exp(score) / Z."""
        examples = len(self.student)
        if self.log_z[side].isnan():
            mean = scores.detach().logsumexp((0, 1)) - math.log(scores.numel()) + math.log(examples)
            self.log_z = self.log_z.index_fill(0, torch.tensor([side], device=mean.device), mean_over_ranks(mean))
        odds = scores - self.log_z[side] - math.log(self.negatives / examples)
        return F.softplus(-odds[:, 0]).mean() + F.softplus(odds[:, 1:]).sum(1).mean()

    @torch.no_grad()
    def _write(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        index = gather(index)
        for name, new in (("student", student), ("teacher", teacher)):
            bank = getattr(self, name)
            old, new = bank[index], gather(new)
            mixed = F.normalize(self.momentum * old + (1 - self.momentum) * new, dim=1)
            mixed = torch.where(new.isfinite().all(1, keepdim=True), mixed, old)  # a step may be skipped
            # a new tensor: autograd still needs the old one
            setattr(self, name, bank.index_copy(0, index, mixed))


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a scalar over all processes."""
    return gather(value.reshape(1)).mean()
