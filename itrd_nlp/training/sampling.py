"""Samplers of batches of similar length, in an order that a resumed run repeats."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_budget
from itrd_nlp.training.group_sampling import group_column, group_sampler
from itrd_nlp.training.rank_batches import RankBatchSampler
from itrd_nlp.utils.batches import text_lengths, token_batches
from itrd_nlp.utils.errors import UserError


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


class TokenBudgetSampler(RankBatchSampler):
    """Batches of similar length that hold up to ``budget`` tokens, padding included: many short texts or few long ones.

    The batches are made once; each epoch shuffles them.

    Args:
        lengths: tokens of each text.
        budget: tokens of a batch; a text that is longer is a batch of its own.
        seed, epoch: decide the order of the batches.
        rank, ranks: this process, and how many there are.
    """

    def __init__(
        self, lengths: Sequence[int], budget: int, seed: int, epoch: Callable[[], int], rank: int = 0, ranks: int = 1
    ):
        super().__init__(lengths, token_batches(lengths, budget), seed, epoch, rank, ranks)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self.order_seed + self.now())
        for step in torch.randperm(len(self.steps), generator=draw).tolist():
            yield self.steps[step][self.rank]


def sampler_by_length(
    args: ITRDArguments, dataset: Any, lengths_of: Any, epoch: Callable[[], int], distils: bool
) -> Sampler | None:
    """The sampler of the training data where batches are made by length or of groups, else None.

    Args:
        dataset: to sample from.
        lengths_of: the dataset with its lengths; None for images.
        epoch: returns the current epoch.
        distils: whether losses take statistics over a batch.

    Raises:
        UserError: ``tokens_per_batch`` without lengths, or too low for statistics.
    """
    grouped = group_column(lengths_of) is not None
    if args.tokens_per_batch is None and args.train_sampling_strategy != "group_by_length" and not grouped:
        return None
    if args.tokens_per_batch is None and lengths_of is None:
        return RandomSampler(dataset)
    lengths = text_lengths(lengths_of, args.length_column_name)
    seed = args.seed if args.data_seed is None else args.data_seed
    if args.tokens_per_batch is not None and lengths and distils:
        check_budget(args, max(lengths))
    if grouped:
        return group_sampler(args, lengths_of, lengths, seed, epoch)
    if args.tokens_per_batch is None:
        batch = args.train_batch_size * args.gradient_accumulation_steps
        return EpochLengthSampler(batch, dataset, lengths, seed, epoch)
    if lengths is None:
        raise UserError(
            f"tokens_per_batch {args.tokens_per_batch}: the training data has no column "
            f"{args.length_column_name!r} or 'input_ids'; expected a datasets.Dataset of texts"
        )
    return TokenBudgetSampler(
        lengths, args.tokens_per_batch, seed, epoch, rank=args.process_index, ranks=args.world_size
    )
