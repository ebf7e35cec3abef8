"""SRD: a simple recipe distillation, the logarithm of a batch-normalised distance."""

from collections.abc import Mapping

from torch import Tensor

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_layers, check_positive, mean
from itrd_nlp.losses.projectors import build_projectors


class SRDLoss(DistillationLoss):
    """Simple recipe distillation (Miles and Mikolajczyk, AAAI 2024), averaged over the matched layers.

    ``log sum |s - t|^exponent`` over samples and features, where ``s`` is the linearly projected student and ``t`` the
    teacher, both batch-normalised without learned scale. The paper adds KD on the logits: name ``kd`` beside it. A
    batch of one sample has no statistics: its term is zero.

    Args:
        shapes: widths of the matched layers.
        weight: weight of the term.
        exponent: of the differences; 4 in the paper.
        eps: added to variances.
    """

    paper = "Miles and Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024"
    reads_logits = False
    needs_statistics = True

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, exponent: float = 4.0, eps: float = 1e-4):
        super().__init__(build_projectors(shapes.student_widths, shapes.teacher_widths))
        check_layers("srd", shapes)
        check_positive("srd", weight=weight, exponent=exponent, eps=eps)
        self.weight, self.exponent, self.eps = weight, exponent, eps

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``srd``, weighted; zero for a batch of one sample."""
        pairs = zip(student.projected, teacher.features, strict=True)
        return {"srd": self.weight * mean(self.distance(s, t) for s, t in pairs)}

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of (n, d) layers; equal layers stay finite."""
        if len(student) < 2:
            return student.sum() * 0
        s, t = [(x - x.mean(0)) * (x.var(0, correction=0) + self.eps).rsqrt() for x in (student, teacher)]
        return (s - t).abs().pow(self.exponent).sum().clamp_min(1e-12).log()
