"""The base of losses that compare the documents of one query with each other."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from itrd_nlp.losses.base import GROUP, DistillationLoss, Representation, check_positive
from itrd_nlp.utils.errors import UserError


class GroupLoss(DistillationLoss):
    """The base of losses on the scores of a group: all documents that a batch holds of one query.

    A batch says by ``GROUP`` which group each of its rows belongs to. The loss is a mean over groups, so that queries
    count alike however many documents they have; a group of one document has nothing to compare and adds 0.

    Args:
        name: of the loss and its term.
        weight: weight of the term.
    """

    reads_features = False

    def __init__(self, name: str, weight: float):
        super().__init__()
        check_positive(name, weight=weight)
        self.name, self.weight = name, weight

    def check_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Raise :class:`UserError` where batches do not say which group a row belongs to."""
        if GROUP not in batch:
            raise UserError(
                f"{self.name} compares the documents of a query, and the data has no column {GROUP!r}: expected "
                "--task reranking; for other tasks name other losses"
            )

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One term by the loss's own name, weighted; the mean over heads."""
        self.check_batch(batch)
        same = batch[GROUP][:, None] == batch[GROUP][None]  # (n, n) whether two rows belong to one group
        # the rows of a group of m documents add 1/m each: the number of groups, without asking the device for it
        groups = (1 / same.sum(1)).sum()
        totals = [
            self.total(self.scores(logits), self.scores(teacher.logits[head]), same, batch)
            for head, logits in student.logits.items()
        ]
        return {self.name: self.weight * torch.stack(totals).mean() / groups}

    @abstractmethod
    def total(self, student: Tensor, teacher: Tensor, same: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum of the loss over groups, unweighted.

        Args:
            student, teacher: (n,) scores.
            same: (n, n) whether two rows belong to one group.
        """

    def scores(self, logits: Tensor) -> Tensor:
        """The (n,) scores of a head of one output; :class:`UserError` for more."""
        if logits.shape[1:] != (1,):
            raise UserError(
                f"{self.name} compares one score a document, the head gives {tuple(logits.shape[1:])}: expected models "
                "of one output, as --task reranking makes them"
            )
        return logits[:, 0]
