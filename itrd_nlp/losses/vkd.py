"""VkD: an orthogonal projection onto the standardised teacher."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_layers, check_positive, mean


class VkDLoss(DistillationLoss):
    """Distillation with an orthogonal projection (Miles, Elezi and Deng, CVPR 2024), averaged over the matched layers.

    The student passes a linear map whose rows or columns stay orthonormal, so that the map can neither shrink nor
    ignore part of what it is given; the teacher's features are standardised over each sample, as by layer
    normalisation without learned scale; their smooth L1 distance is the loss.

    Args:
        shapes: widths of the matched layers.
        weight: weight of the term.
    """

    paper = "Miles, Elezi and Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections. CVPR 2024"
    reads_logits = False
    needs_fp32 = True  # torch's orthogonal maps
    maps_to_teacher = True

    def __init__(self, shapes: Shapes, *, weight: float = 1.0):
        pairs = zip(shapes.student_widths, shapes.teacher_widths, strict=True)
        # the default map of unequal widths does not survive weight decay: it is the exponential for all
        super().__init__(orthogonal(nn.Linear(s, t, bias=False), orthogonal_map="matrix_exp") for s, t in pairs)
        check_layers("vkd", shapes)
        check_positive("vkd", weight=weight)
        self.weight = weight

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``vkd``, weighted."""
        pairs = zip(student.projected, teacher.features, strict=True)
        return {"vkd": self.weight * mean(F.smooth_l1_loss(s, F.layer_norm(t, t.shape[1:])) for s, t in pairs)}
