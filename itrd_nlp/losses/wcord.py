"""WCoRD: Wasserstein contrastive representation distillation, re-implemented from the paper's description."""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from itrd_nlp.losses.base import Representation, Shapes, check_positive, mean
from itrd_nlp.losses.crd import CRDLoss


class WCoRDLoss(CRDLoss):
    """Wasserstein contrastive representation distillation (Chen et al., CVPR 2021).

    Re-implemented from the paper's description, as its authors published no code. The global term, which the paper
    derives from the dual form, is CRD's contrast of embeddings of unit length from heads of spectral norm 1; as the
    length is normalised after the head, and the contrast is not linear in it, the term is not a dual of a distance. The
    local term (primal form) is the cost of the optimal transport between the two networks' embeddings of a batch, by
    Sinkhorn's iterations, with one minus the cosine as the cost of a pair.

    Args:
        shapes: as for :class:`CRDLoss`.
        weight: weight of the global term.
        local_weight: weight of the local term; ITRD's authors found it stable only below 0.2.
        epsilon: entropy of the transport plan.
        iterations: Sinkhorn iterations.
        dim, negatives, temperature, momentum: as of :class:`CRDLoss`.
    """

    paper = "Chen et al.: Wasserstein Contrastive Representation Distillation. CVPR 2021"
    needs_statistics = True
    gathers_in_terms = True  # the memory bank takes the embeddings of each process's own examples
    needs_fp32 = True  # the power iteration of torch's spectral norm

    def __init__(
        self,
        shapes: Shapes,
        *,
        weight: float = 0.8,
        local_weight: float = 0.05,
        epsilon: float = 0.1,
        iterations: int = 50,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__(
            shapes, weight=weight, dim=dim, negatives=negatives, temperature=temperature, momentum=momentum
        )
        check_positive("wcord", local_weight=local_weight, epsilon=epsilon, iterations=iterations)
        self.local_weight, self.epsilon, self.iterations = local_weight, epsilon, iterations

    @staticmethod
    def head(width: int, dim: int) -> nn.Module:
        """A linear map of spectral norm 1."""
        return spectral_norm(nn.Linear(width, dim))

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``global`` and ``local``, weighted."""
        embeddings = self.embed(student, teacher)
        gathered = [(self.gathered(s), self.gathered(t)) for s, t in embeddings]
        local = mean(transport_cost(1 - s @ t.T, self.epsilon, self.iterations) for s, t in gathered)
        return {"global": self.weight * self.contrast(embeddings, batch), "local": self.local_weight * local}


def transport_cost(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Cost of moving one uniform distribution onto another by Sinkhorn's plan (Cuturi 2013); the plan has no gradient.

    Args:
        cost: (n, m) of each pair.
        epsilon: entropy of the plan.
        iterations: alternations of the two marginals.

    Returns:
        Scalar; the mean cost of a unit of mass.

    Example:
        >>> import torch
        >>> round(transport_cost(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.05, 50).item(), 4)
        0.0
    """
    n, m = cost.shape
    scaled = -cost.detach() / epsilon
    row, column = scaled.new_zeros(n, 1), scaled.new_zeros(1, m)
    for _ in range(iterations):
        row = -math.log(n) - (scaled + column).logsumexp(1, keepdim=True)
        column = -math.log(m) - (scaled + row).logsumexp(0, keepdim=True)
    return ((scaled + row + column).exp() * cost).sum()
