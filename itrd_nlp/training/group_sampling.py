"""Batches that keep the documents of a query together, in an order that a resumed run repeats."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from itrd_nlp.losses import of_losses
from itrd_nlp.losses.base import GROUP
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.sampling import RankBatchSampler
from itrd_nlp.utils.batches import padded_length
from itrd_nlp.utils.datasets import label_column
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import PAD_MULTIPLE


class GroupSampler(RankBatchSampler):
    """Batches of complete groups: as many as fit.

    Of a group that is too large, each epoch draws other documents, so that a student sees all of them in time; where
    the group has a relevant document, the draw holds one. How many it draws is the same in every epoch: the batches are
    made once, and each epoch shuffles them.

    Args:
        groups: (n,) the group of each document.
        lengths: (n,) tokens of each document with its query.
        limit: documents of a batch; or its tokens, padding included.
        by_tokens: whether ``limit`` counts tokens.
        cap: most documents of a group; None: as many as fit into a batch.
        relevant: (n,) whether a document is relevant.
        seed, epoch: decide the draws and the order of the batches.
        strategy: as Trainer's ``train_sampling_strategy``: which groups meet in a batch.
        rank, ranks: this process, and how many there are.

    Attributes:
        share: of all documents, how many an epoch draws.
    """

    def __init__(
        self,
        groups: Sequence[int],
        lengths: Sequence[int],
        limit: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        by_tokens: bool = False,
        cap: int | None = None,
        relevant: np.ndarray | None = None,
        strategy: str = "group_by_length",
        rank: int = 0,
        ranks: int = 1,
    ):
        _, self.group_of = np.unique(np.asarray(groups), return_inverse=True)
        self.relevant = np.zeros(len(self.group_of), bool) if relevant is None else np.asarray(relevant, bool)
        sizes = np.bincount(self.group_of)
        width = np.ones(len(sizes), int)  # what a document of each group takes of the limit
        if by_tokens:
            np.maximum.at(width, self.group_of, padded_length(np.asarray(lengths)))
        most = np.maximum(1, limit // width)
        self.drawn = np.minimum(sizes, most if cap is None else np.minimum(cap, most))
        self.share = float(self.drawn.sum() / len(self.group_of))
        self.shuffles = strategy != "sequential"
        batches = self._pack(self._order(strategy, np.asarray(lengths), seed), width, limit)
        super().__init__(batches, seed, epoch, rank, ranks)

    def _order(self, strategy: str, lengths: np.ndarray, seed: int) -> np.ndarray:
        """The groups in the order in which batches take them."""
        count = len(self.drawn)
        if strategy == "random":
            return np.random.default_rng(seed).permutation(count)
        if strategy == "sequential":
            first = np.full(count, len(lengths))
            np.minimum.at(first, self.group_of, np.arange(len(lengths)))
            return np.argsort(first)
        longest = np.zeros(count, int)
        np.maximum.at(longest, self.group_of, lengths)
        return np.argsort(-longest, kind="stable")

    def _pack(self, order: np.ndarray, width: np.ndarray, limit: int) -> list[list[int]]:
        """The groups of each batch."""
        batches: list[list[int]] = []
        documents = widest = 0
        for group in order.tolist():
            documents, widest = documents + int(self.drawn[group]), max(widest, int(width[group]))
            if not batches or documents * widest > limit:
                batches.append([])
                documents, widest = int(self.drawn[group]), int(width[group])
            batches[-1].append(group)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng((self.order_seed, self.now()))
        members = self._members(draw)
        order = draw.permutation(len(self.steps)) if self.shuffles else np.arange(len(self.steps))
        for step in order.tolist():
            yield [index for group in self.steps[step][self.rank] for index in members[group].tolist()]

    def _members(self, draw: np.random.Generator) -> list[np.ndarray]:
        """The indices of the documents that one epoch draws of each group."""
        keys = draw.random(len(self.group_of))
        # of the relevant documents of a group, the one with the lowest key comes before all others
        first = np.full(len(self.drawn), np.inf)
        np.minimum.at(first, self.group_of[self.relevant], keys[self.relevant])
        keys[self.relevant & (keys == first[self.group_of])] = -1
        order = np.lexsort((keys, self.group_of))
        starts = np.concatenate([[0], np.bincount(self.group_of).cumsum()[:-1]])
        return [np.sort(order[start : start + count]) for start, count in zip(starts, self.drawn, strict=True)]


def is_grouped(data: Any) -> bool:
    """Whether training data says which group each example belongs to."""
    return isinstance(data, Dataset) and GROUP in data.column_names


def check_groups(args: ITRDArguments, data: Any) -> None:
    """Refuse arguments that do not go with data with groups, or without them."""
    if args.documents_per_query is not None and not is_grouped(data):
        raise UserError(
            f"documents_per_query {args.documents_per_query}: it is for data with queries, as of --task reranking; "
            "leave it out"
        )
    if args.auto_find_batch_size and is_grouped(data):
        raise UserError(
            "auto_find_batch_size with groups of documents, whose batches it does not make smaller: leave it out, and "
            "lower per_device_train_batch_size"
        )
    banks = of_losses(args.losses, "reads_index")
    if banks and args.world_size > 1 and is_grouped(data):
        raise UserError(
            f"{banks[0]} with groups of documents on {args.world_size} processes: a memory bank needs as many "
            "examples on each, and groups differ in size; name other losses"
        )


def group_sampler(
    args: ITRDArguments, data: Dataset, lengths: Sequence[int] | None, seed: int, epoch: Callable[[], int]
) -> GroupSampler:
    """The sampler of training data with groups."""
    groups, relevant = data.with_format(None)[GROUP][:], None
    if (name := label_column(data)) is not None:
        relevant = np.reshape(data.with_format(None)[name][:], (len(groups), -1))[:, 0] > 0
    return GroupSampler(
        groups,
        [PAD_MULTIPLE] * len(groups) if lengths is None else lengths,
        args.tokens_per_batch or args.train_batch_size,
        seed,
        epoch,
        by_tokens=args.tokens_per_batch is not None,
        cap=args.documents_per_query,
        relevant=relevant,
        strategy=str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy)),
        rank=args.process_index,
        ranks=args.world_size,
    )
