"""The base of samplers that make whole batches, a batch for each rank at every step."""

from collections.abc import Callable, Sequence

from transformers.trainer_pt_utils import BatchRebalanceSampler


class RankBatchSampler(BatchRebalanceSampler):
    """Batches that are made once. At every step the ranks get neighbouring batches, and all ranks the same number.

    The last batches are repeated where they do not divide.

    Args:
        lengths: tokens of each example.
        batches: of indices.
        seed, epoch: by which a subclass orders the batches.
        rank, ranks: this process, and how many there are.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batches: list[list[int]],
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        ranks: int = 1,
    ):
        # Trainer takes a sampler of this class as one of whole batches, made for this rank; nothing else is inherited
        super().__init__(list(lengths), effective_batch_size=ranks, dp_size=ranks, grad_accum=1, rank=rank)
        batches = batches + batches[-1:] * (-len(batches) % ranks)
        self.steps = [batches[i : i + ranks] for i in range(0, len(batches), ranks)]
        self.order_seed, self.now = seed, epoch

    def __len__(self) -> int:
        return len(self.steps)
