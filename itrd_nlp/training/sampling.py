"""Samplers of batches of similar length, in an order that a resumed run repeats."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler


class EpochLengthSampler(LengthGroupedSampler):
    """Batches of similar length; their order depends on the seed and the epoch alone: a resumed run repeats it."""

    def __init__(
        self, batch_size: int, dataset: Any, lengths: Sequence[int] | None, seed: int, epoch: Callable[[], int]
    ):
        super().__init__(batch_size, dataset=dataset, lengths=None if lengths is None else list(lengths))
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return super().__iter__()


class RankBatchSampler(BatchRebalanceSampler):
    """Batches that are made once; each epoch shuffles them.

    At every step the ranks get neighbouring batches, and all ranks the same number: the last batches are repeated where
    they do not divide.

    Args:
        batches: of indices.
        seed, epoch: decide the order of the batches.
        rank, ranks: this process, and how many there are.
    """

    def __init__(self, batches: list[list[int]], seed: int, epoch: Callable[[], int], rank: int = 0, ranks: int = 1):
        # Trainer takes a sampler of this class as one of whole batches, made for this rank; nothing else is inherited
        super().__init__([], effective_batch_size=ranks, dp_size=ranks, grad_accum=1, rank=rank)
        batches = batches + batches[-1:] * (-len(batches) % ranks)
        self.steps = [batches[i : i + ranks] for i in range(0, len(batches), ranks)]
        self.order_seed, self.now = seed, epoch

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self.order_seed + self.now())
        for step in torch.randperm(len(self.steps), generator=draw).tolist():
            yield self.steps[step][self.rank]
