"""The cosine term of DistilBERT's pre-training."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_layers, check_positive, mean
from itrd_nlp.losses.projectors import project_unequal


class CosineLoss(DistillationLoss):
    """One minus the cosine of matched features (Sanh et al. 2019), averaged over samples and layers.

    DistilBERT pre-trains with it on the last hidden state of every token (``layer_map: last``, ``pooling: all_tokens``,
    weight 1 beside 5 for the soft labels). Its SQuAD step is KD: ``kd: {temperature: 2, weight: 0.5}`` with
    ``task_weight: 0.5``.

    Args:
        shapes: widths of the matched layers; layers of unequal width are projected.
        weight: weight of the term.
    """

    paper = "Sanh et al.: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. 2019"
    reads_logits = False
    maps_to_teacher = True

    def __init__(self, shapes: Shapes, *, weight: float = 1.0):
        super().__init__(project_unequal(shapes))
        check_layers("cosine", shapes)
        check_positive("cosine", weight=weight)
        self.weight = weight

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cosine``, weighted."""
        pairs = zip(student.projected, teacher.features, strict=True)
        return {"cosine": self.weight * mean(1 - F.cosine_similarity(s, t, dim=1).mean() for s, t in pairs)}
