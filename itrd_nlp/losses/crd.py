"""CRD: contrastive representation distillation."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from itrd_nlp.losses.base import (
    INDEX,
    DistillationLoss,
    Representation,
    Shapes,
    check_layers,
    check_positive,
    in_its_precision,
    mean,
)
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.utils.errors import UserError


class CRDLoss(DistillationLoss):
    """Contrastive representation distillation (Tian et al., ICLR 2020), averaged over the matched layers.

    Each network's features pass a linear head and are scaled to length 1; the teacher's head is trained too. An example
    is distinguished from ``negatives`` others by noise-contrastive estimation over a memory bank of all training
    examples. Where each example has a class, negatives are of other classes, as in the paper; question answering has
    none, so that every other training window is a negative, even one of the same paragraph. The bank takes ``8 dim``
    bytes for each training example and layer.

    Args:
        shapes: widths of the matched layers, which must be pooled to one sample an example, and the number of examples.
        weight: weight of the term; 0.8 in the paper.
        dim: width of the embeddings.
        negatives: K; drawn without replacement if there are enough, as in the authors' code (RepDistiller).
        temperature: of the scores.
        momentum: of the memory bank.
    """

    paper = "Tian, Krishnan and Isola: Contrastive Representation Distillation. ICLR 2020"
    reads_logits = False
    reads_index = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        weight: float = 0.8,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        name = type(self).__name__.removesuffix("Loss").lower()
        check_layers(name, shapes)
        check_positive(name, weight=weight, dim=dim, negatives=negatives, temperature=temperature)
        if not 0 <= momentum < 1:
            raise UserError(f"{name} with momentum {momentum}: expected 0 or more, below 1")
        if shapes.pooling not in ("mean", "cls"):
            raise UserError(
                f"{name} with pooling {shapes.pooling!r}: expected one sample an example, pooling mean or cls; its "
                "memory bank holds one embedding of each example"
            )
        if shapes.examples < 2:
            raise UserError(
                f"{name} needs to number the training data: expected a datasets.Dataset of at least 2 "
                "examples, without a transform that runs as it is read (use map)"
            )
        self.weight = weight
        self.heads = nn.ModuleList(
            nn.ModuleList([self.head(s, dim), self.head(t, dim)])
            for s, t in zip(shapes.student_widths, shapes.teacher_widths, strict=True)
        )
        self.banks = nn.ModuleList(
            MemoryBank(shapes.examples, dim, negatives, temperature, momentum, shapes.labels) for _ in self.heads
        )

    @staticmethod
    def head(width: int, dim: int) -> nn.Module:
        """The map from features to embeddings."""
        return nn.Linear(width, dim)

    def embed(self, student: Representation, teacher: Representation) -> list[tuple[Tensor, Tensor]]:
        """(n, dim) embeddings of both networks for each matched layer, of length 1."""
        layers = zip(self.heads, student.features, teacher.features, strict=True)
        return [(_embedded(heads[0], s), _embedded(heads[1], t)) for heads, s, t in layers]

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``crd``, weighted."""
        return {"crd": self.weight * self.contrast(self.embed(student, teacher), batch)}

    def contrast(self, embeddings: list[tuple[Tensor, Tensor]], batch: Mapping[str, Tensor]) -> Tensor:
        """Mean of the layers' contrastive losses; then the batch is written into the banks."""
        return mean(bank(s, t, batch[INDEX]) for bank, (s, t) in zip(self.banks, embeddings, strict=True))


def _embedded(head: nn.Module, x: Tensor) -> Tensor:
    return F.normalize(in_its_precision(head, x), dim=1)
