"""The listwise loss: the teacher's scores of a query's documents as a distribution over them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from itrd_nlp.losses.base import Shapes, check_positive
from itrd_nlp.losses.groups import GroupLoss


class ListwiseLoss(GroupLoss):
    """Divergence of the scores over the documents of a query, averaged over queries.

    ``weight T^2 KL(softmax(t / T) || softmax(s / T))``, where the softmax runs over the documents of the query: the
    top-one probabilities of ListNet (Cao et al. 2007) with the teacher's scores in place of labels. A constant that is
    added to all scores of a query changes nothing.

    Args:
        shapes: not read.
        weight: weight of the term.
        temperature: T; the lower, the more the first documents count.
        t_squared: multiply by T^2, which keeps the gradient's size when T changes.
    """

    paper = "Cao et al.: Learning to Rank: From Pairwise Approach to Listwise Approach. ICML 2007"

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, temperature: float = 1.0, t_squared: bool = True):
        super().__init__("listwise", weight)
        check_positive("listwise", temperature=temperature)
        self.temperature = temperature
        self.scale = temperature**2 if t_squared else 1.0

    def total(self, student: Tensor, teacher: Tensor, same: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum of the groups' divergences, times T^2."""
        log_student, log_teacher = [log_softmax(x / self.temperature, same) for x in (student, teacher)]
        return self.scale * (log_teacher.exp() * (log_teacher - log_student)).sum()


def log_softmax(scores: Tensor, same: Tensor) -> Tensor:
    """Logarithm of the softmax of (n,) scores over the rows of each group.

    Args:
        same: (n, n) whether two rows belong to one group.

    Example:
        >>> scores, same = torch.tensor([0.0, 5.0, 0.0]), torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
        >>> log_softmax(scores, same).exp().tolist()
        [0.5, 1.0, 0.5]
    """
    rows = torch.where(same, scores[None], -torch.inf)  # of row i: the scores of its group
    return scores - rows.logsumexp(1)
