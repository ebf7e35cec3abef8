"""The memory bank of contrastive distillation: one embedding of each training example from each network."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn

from itrd_nlp.utils.errors import UserError


class MemoryBank(nn.Module):
    """Embeddings of all examples, and the noise-contrastive score of a batch against them (Tian et al. 2020, eq. 17).

    Both networks have a bank: the student is contrasted with the teacher's and the teacher with the student's. Every
    rank holds the same banks: embeddings are gathered before they are written. The banks are buffers, so that a
    checkpoint keeps them; while a batch is written, memory holds a bank twice.

    Args:
        examples: N, of the training data.
        width: of an embedding.
        negatives: K, drawn uniformly from the other examples of the training data: without replacement for an example
            that has enough others, with replacement otherwise, as in the authors' code (RepDistiller).
        temperature: divides inner products.
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
        self.is_fixed = [False, False]  # whether they are, without waiting for the device
        labels = torch.arange(examples) if labels is None else labels
        counts = labels.bincount()
        if counts.max() == examples:
            raise UserError(
                f"all {examples} training examples are of one class: expected others to draw negatives from"
            )
        self.least, self.most = examples - int(counts.max()), examples - int(counts.min())  # others that an example has
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)  # indices, class by class
        self.register_buffer("first", (counts.cumsum(0) - counts)[labels], persistent=False)  # where a class starts
        self.register_buffer("alike", counts[labels], persistent=False)  # how many are of an example's class

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Contrast a batch with the banks, then write it into them.

        Args:
            student, teacher: (n, width) embeddings of length 1.
            index: (n,) indices of the examples in the training data.

        Returns:
            Scalar: the sum of both networks' losses, each a mean over the batch.
        """
        columns = torch.cat([index[:, None], self._others(index)], 1)
        total = student.new_zeros(())
        for side, (anchor, bank) in enumerate([(student, self.teacher), (teacher, self.student)]):
            # all N scores, of which K + 1 are taken: gathering the embeddings themselves would move width times more
            scores = (anchor @ bank.T.to(anchor.dtype) / self.temperature).gather(1, columns)
            total = total + self._contrast(scores, side)
        self._write(student.detach(), teacher.detach(), index)
        return total

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.is_fixed = [False, False]
        super()._load_from_state_dict(*args, **kwargs)

    def _others(self, index: Tensor) -> Tensor:
        """(n, K) indices of examples of other classes."""
        alike, first = self.alike[index, None], self.first[index, None]
        drawn = draw(len(self.student) - alike, self.negatives, self.least, self.most)
        return self.by_class[drawn + alike * (drawn >= first)]

    def _contrast(self, scores: Tensor, side: int) -> Tensor:
        """Noise-contrastive estimation on (n, 1 + K) scores, in logarithms: h = p / (p + K/N), p = exp(score) / Z."""
        examples = len(self.student)
        if not self.is_fixed[side]:
            self._fix(scores.detach(), side)
        odds = scores - self.log_z[side] - math.log(self.negatives / examples)
        return F.softplus(-odds[:, 0]).mean() + F.softplus(odds[:, 1:]).sum(1).mean()

    def _fix(self, scores: Tensor, side: int) -> None:
        """Take a normaliser from the first finite scores, unless a checkpoint had it."""
        if not self.log_z[side].isfinite():
            mean = scores.logsumexp((0, 1)) - math.log(scores.numel()) + math.log(len(self.student))
            mean = gather(mean.reshape(1)).mean()  # over all processes
            self.log_z = self.log_z.index_fill(0, torch.tensor([side], device=mean.device), mean)
        self.is_fixed[side] = bool(self.log_z[side].isfinite())

    @torch.no_grad()
    def _write(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        index = gather(index)
        for name, new in (("student", student), ("teacher", teacher)):
            bank = getattr(self, name)
            old, new = bank[index], gather(new)
            mixed = F.normalize(self.momentum * old + (1 - self.momentum) * new, dim=1)
            mixed = torch.where(new.isfinite().all(1, keepdim=True), mixed, old)  # a step may be skipped
            # a new tensor: autograd still needs the old one
            setattr(self, name, bank.index_copy(0, index, mixed.to(bank.dtype)))


def draw(room: Tensor, count: int, least: int, most: int) -> Tensor:
    """Draw (n, count) numbers below the (n, 1) ``room`` of each row, all different where it is large enough.

    ``least`` and ``most`` are the bounds of ``room``, known without waiting for the device.
    """
    if most < count:
        return _repeated(room, count)
    distinct = _distinct_by_shuffling if room.device.type == "cpu" else _distinct_by_sorting
    if least >= count:
        return distinct(room, count, most)
    return torch.where(room < count, _repeated(room, count), distinct(room, count, most))


def _repeated(room: Tensor, count: int) -> Tensor:
    return torch.randint(2**48, (len(room), count), device=room.device) % room


def _distinct_by_shuffling(room: Tensor, count: int, most: int) -> Tensor:
    """A shuffle for each row, which is what a CPU does fastest; rows with less room hold zeros at their end."""
    drawn = torch.zeros(len(room), count, dtype=torch.long)
    for row, size in zip(drawn, room.flatten().tolist(), strict=True):
        row[: min(size, count)] = torch.randperm(size)[:count]
    return drawn


def _distinct_by_sorting(room: Tensor, count: int, most: int) -> Tensor:
    """The largest of ``most`` random keys in each row, all rows in one kernel; rows with less room hold others."""
    keys = torch.rand(len(room), most, device=room.device)
    keys.masked_fill_(torch.arange(most, device=room.device) >= room, -1)
    return keys.topk(count, sorted=False).indices
