"""ReviewKD: the student's stages, each fused with all deeper ones, learn the stages of the teacher."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_positive, in_its_precision
from itrd_nlp.utils.batch_norm import Norm
from itrd_nlp.utils.errors import UserError

LEVELS = (4, 2, 1)  # sides to which maps are pooled, each with half the weight of the one before


class ReviewKDLoss(DistillationLoss):
    """Distilling knowledge via knowledge review (Chen et al., CVPR 2021), for image classifiers.

    From the features before the classifier back to the first stage, each map of the student is fused with the fused map
    of the next deeper stage (attention-based fusion), and compared with the teacher's map of its stage by the
    hierarchical context loss, :func:`context_loss`. The teacher's maps are those before the activation in the
    ``cifar_*`` networks; other networks do not say where that is, and are read after it.

    Args:
        shapes: of the stages' maps.
        weight: of the sum over the stages; 0.6 to 8 in the paper, by the pair of networks.
        warmup: epochs over which the weight grows. The first epoch has none, as in the authors' code, which counts from
            0; ``warmup: 0`` gives the full weight from the start.
        width: most channels of the fused maps.
    """

    paper = "Chen et al.: Distilling Knowledge via Knowledge Review. CVPR 2021"
    reads_features = False
    reads_logits = False
    reads_maps = True

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, warmup: float = 20.0, width: int = 512):
        super().__init__()
        check_positive("reviewkd", weight=weight, width=width)
        if warmup < 0:
            raise UserError(f"reviewkd with warmup {warmup}: expected epochs, 0 or more")
        if not shapes.maps:
            raise UserError("reviewkd without matched layers: expected image classifiers")
        if any(len(shape) not in (1, 3) for pair in shapes.maps for shape in pair):
            raise UserError("reviewkd: expected stages with (channels, height, width) maps, as in a ResNet")
        self.weight, self.warmup = weight, warmup
        channels = [(student[0], teacher[0]) for student, teacher in shapes.maps]
        width = min(width, channels[-1][0])
        last = len(channels) - 1
        self.fusions = nn.ModuleList(Fusion(s, width, t, deepest=i == last) for i, (s, t) in enumerate(channels))

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``reviewkd``, weighted."""
        fused: Tensor | None = None
        total = next(iter(student.logits.values())).new_zeros(())
        for fusion, x, target in reversed(list(zip(self.fusions, student.maps, teacher.maps, strict=True))):
            target = _as_map(target)
            out, fused = fusion(_as_map(x), fused, target.shape[2:])
            total = total + context_loss(out, target)
        growth = min(1.0, self.epoch / self.warmup) if self.warmup else 1.0
        return {"reviewkd": self.weight * growth * total}


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a stage's map with the fused map of the next deeper stage, of ``width`` channels.

    The ``deepest`` stage, the last one, has nothing to fuse with.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, deepest: bool):
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), Norm(width))
        self.widen = nn.Sequential(nn.Conv2d(width, out_channels, 3, padding=1, bias=False), Norm(out_channels))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        for part in (self.narrow, self.widen):
            nn.init.kaiming_uniform_(part[0].weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """(n, out_channels, *size) to compare with the teacher, and (n, width, *size) for the next stage."""
        x = in_its_precision(self.narrow, x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            shares = in_its_precision(self.attention, torch.cat([x, deeper], 1))
            x = shares[:, :1] * x + shares[:, 1:] * deeper
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return in_its_precision(self.widen, x), x


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss (HCL): the mean squared difference of two maps, and of the maps pooled to coarser ones.

    Args:
        student, teacher: (n, channels, height, width).

    Returns:
        Scalar: the mean over the levels that are coarser than the maps, weighted by 1, 1/2, 1/4, 1/8.

    Example:
        >>> context_loss(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).item()
        1.0
    """
    total, weight = F.mse_loss(student, teacher), 1.0
    weights = weight
    for side in LEVELS:
        if side < student.shape[2]:
            weight /= 2
            pooled = [F.adaptive_avg_pool2d(x, side) for x in (student, teacher)]
            total = total + weight * F.mse_loss(*pooled)
            weights += weight
    return total / weights


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.ndim == 2 else x
