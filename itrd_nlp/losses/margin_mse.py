"""MarginMSE: the differences between the scores of a query's documents."""

from collections.abc import Mapping

import torch
from torch import Tensor

from itrd_nlp.losses.base import Shapes
from itrd_nlp.losses.groups import GroupLoss
from itrd_nlp.utils.errors import UserError

PAIRS = ("labels", "all")


class MarginMSELoss(GroupLoss):
    """Squared error of score differences within a query (Hofstaetter et al. 2020), averaged over its pairs.

    ``weight ((s_+ - s_-) - (t_+ - t_-))^2``: the mean over the pairs of documents of each query, then over queries. The
    student may shift all scores of a query by a constant, which changes no ranking; the squared error of the scores
    themselves (``kd``) forbids it.

    Args:
        shapes: not read.
        weight: weight of the term.
        pairs: ``"labels"`` for pairs of documents with unequal labels, as in the paper; ``"all"`` for every pair, which
            needs no labels.
    """

    paper = (
        "Hofstätter et al.: Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation. "
        "2020"
    )

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, pairs: str = "labels"):
        super().__init__("margin_mse", weight)
        if pairs not in PAIRS:
            raise UserError(f"margin_mse with pairs {pairs!r}: expected one of {', '.join(PAIRS)}")
        self.pairs = pairs

    def check_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Raise :class:`UserError` for batches without groups, or without labels where they choose the pairs."""
        super().check_batch(batch)
        if self.pairs == "labels" and "labels" not in batch:
            raise UserError(
                "margin_mse pairs documents of unequal labels, and the training data carries none: add --label_column, "
                "or --losses.margin_mse.pairs all"
            )

    def total(self, student: Tensor, teacher: Tensor, same: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum over groups of the mean over pairs."""
        if self.pairs == "labels":
            labels = batch["labels"].reshape(-1)
            chosen = same & (labels[:, None] > labels[None])
        else:
            chosen = same.triu(1)
        difference = student - teacher
        # (s_i - s_j) - (t_i - t_j) = (s_i - t_i) - (s_j - t_j)
        margins = torch.where(chosen, difference[:, None] - difference[None], 0.0)
        pairs = same.to(margins.dtype) @ chosen.sum(1).to(margins.dtype)  # (n,) of the group of each row
        return (margins.square() / pairs.clamp_min(1)[:, None]).sum()
