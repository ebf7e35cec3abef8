"""Knowledge distillation on the logits."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_positive
from itrd_nlp.utils.errors import UserError


class KDLoss(DistillationLoss):
    """Divergence of the softened outputs, averaged over samples and heads (Hinton et al. 2015, section 2).

    ``weight T^2 KL(softmax(teacher / T) || softmax(student / T))``. Where several classes may hold at once, each is a
    distribution over yes and no (the sigmoid of its logit / T), averaged over the classes. Scores, as a head of one
    value or of a regression has them, leave nothing to soften: ``weight (teacher - student)^2``, as for logits at a
    high T (section 2.1).

    Args:
        shapes: names of the heads.
        weight: weight of the term.
        temperature: T; 8 in TextBrewer's question-answering recipes.
        t_squared: multiply by T^2, which keeps the gradient's size when T changes; TextBrewer does not.
    """

    paper = "Hinton, Vinyals and Dean: Distilling the Knowledge in a Neural Network. 2015"
    reads_features = False

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, temperature: float = 8.0, t_squared: bool = True):
        super().__init__()
        check_positive("kd", temperature=temperature, weight=weight)
        if not shapes.heads:
            raise UserError("kd compares logits, and the models have none, as encoders of sentences: leave kd out")
        self.weight, self.temperature = weight, temperature
        self.independent, self.scores = shapes.independent, shapes.scores
        self.scale = weight * (temperature**2 if t_squared else 1.0)

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``kd``, weighted."""
        heads = [self.difference(logits, teacher.logits[name]) for name, logits in student.logits.items()]
        return {"kd": torch.stack(heads).mean()}

    def difference(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The weighted difference of one head's (n, classes); 0 of none, as of a batch without a word to tag."""
        if not len(student):
            return student.sum()
        if self.scores or student.shape[-1] == 1:  # a reranker learns labels by a sigmoid, and its scores as they are
            return self.weight * F.mse_loss(student, teacher)
        if self.independent:  # softmax over (x, 0) is the sigmoid of x
            student, teacher = [torch.stack([x, torch.zeros_like(x)], -1).flatten(0, -2) for x in (student, teacher)]
        log_student = F.log_softmax(student / self.temperature, -1)
        target = F.softmax(teacher / self.temperature, -1)
        return self.scale * F.kl_div(log_student, target, reduction="batchmean")
