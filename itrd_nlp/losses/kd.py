"""Knowledge distillation on the logits."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from itrd_nlp.errors import UserError
from itrd_nlp.losses.base import DistillationLoss, Shapes, check_positive
from itrd_nlp.representation import Representation


class KDLoss(DistillationLoss):
    """Divergence of the softened outputs, averaged over samples and heads (Hinton et al. 2015, section 2).

    ``weight T^2 KL(softmax(teacher / T) || softmax(student / T))``.

    Args:
        shapes: names of the heads.
        weight: weight of the term.
        temperature: T; 8 in TextBrewer's question-answering recipes.
        t_squared: multiply by T^2, which keeps the gradient's size when T changes; TextBrewer does not.
    """

    reads_features = False

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, temperature: float = 8.0, t_squared: bool = True):
        super().__init__()
        check_positive("kd", temperature=temperature, weight=weight)
        self.temperature = temperature
        self.scale = weight * (temperature**2 if t_squared else 1.0)

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``kd``, weighted; a head with one value a sample is refused."""
        single = [name for name, logits in student.logits.items() if logits.shape[-1] < 2]
        if single:
            raise UserError(f"kd on {single[0]}, with one value a sample: expected classes to compare; leave kd out")
        heads = [
            F.kl_div(
                F.log_softmax(logits / self.temperature, -1),
                F.softmax(teacher.logits[name] / self.temperature, -1),
                reduction="batchmean",
            )
            for name, logits in student.logits.items()
        ]
        return {"kd": self.scale * torch.stack(heads).mean()}
