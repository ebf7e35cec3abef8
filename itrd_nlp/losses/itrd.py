"""ITRD: information theoretic representation distillation."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_layers, in_its_precision
from itrd_nlp.losses.functional import correlation_loss, mutual_information_loss
from itrd_nlp.losses.projectors import build_projectors
from itrd_nlp.utils.errors import UserError

STACKED = 2**18  # numbers of a layer; up to so many, all layers are computed at once


class ITRDLoss(DistillationLoss):
    """Information theoretic representation distillation (Miles et al., BMVC 2022), averaged over the matched layers.

    The correlation loss always sees the student through its learned projection, even at equal width (as in the authors'
    code); the mutual-information loss sees the student itself and is projected only where the widths differ.
    A batch of one sample has no statistics: its terms are zero.

    Args:
        shapes: widths of the matched layers.
        beta_corr, beta_mi: weights of the two terms; 2 and 1 in the paper, the second with ``mi_form="raw"``. A term
            of weight 0 is not computed.
        alpha: order of the Renyi entropy; 1.01 for equal architectures, 1.5 across architectures in the paper.
        mi_form: ``"log2"`` (eq. 2) or ``"raw"`` (what the published figures used).
        projection: ``"per_layer"``, ``"shared"`` or ``"none"``.
        projection_init: ``"default"`` or ``"identity"``, which has no effect between unequal widths.
        mi_samples: most samples of the (n, n) Gram matrix; of more, it takes a seeded subset.
        seed: seed of that subset.
    """

    paper = "Miles, Lopez Rodriguez and Mikolajczyk: Information Theoretic Representation Distillation. BMVC 2022"
    reads_logits = False
    needs_statistics = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        beta_corr: float = 2.0,
        beta_mi: float = 1.0,
        alpha: float = 1.01,
        mi_form: str = "log2",
        projection: str = "per_layer",
        projection_init: str = "default",
        mi_samples: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        if not (beta_corr or beta_mi) or beta_corr < 0 or beta_mi < 0:
            raise UserError(f"itrd with beta_corr {beta_corr}, beta_mi {beta_mi}: expected weights >= 0, one above 0")
        if mi_form not in ("log2", "raw"):
            raise UserError(f'itrd with mi_form {mi_form!r}: expected "log2" or "raw"')
        if alpha <= 0:
            raise UserError(f"itrd with alpha {alpha}: expected a positive order, 1.01 or 1.5 in the paper")
        if mi_samples < 2:
            raise UserError(f"itrd with mi_samples {mi_samples}: expected at least 2")
        check_layers("itrd", shapes)
        self.beta_corr, self.beta_mi, self.alpha, self.mi_form = beta_corr, beta_mi, alpha, mi_form
        self.mi_samples, self.seed = mi_samples, seed
        same_width = [s == t for s, t in zip(shapes.student_widths, shapes.teacher_widths, strict=True)]
        projectors = build_projectors(shapes.student_widths, shapes.teacher_widths, projection, projection_init)
        if not beta_corr:  # the mutual information of equal widths needs no projection: keep no idle parameters
            projectors = [nn.Identity() if same else p for p, same in zip(projectors, same_width, strict=True)]
        self.projectors = nn.ModuleList(projectors if projection == "per_layer" else projectors[:1])
        self.same_width = same_width

    def project(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Student features of each matched layer in the teacher's width."""
        shared = len(self.projectors) == 1
        return tuple(in_its_precision(self.projectors[0 if shared else i], x) for i, x in enumerate(features))

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``correlation`` and ``mutual_information``, weighted; zero for a batch of one sample."""
        terms: dict[str, Tensor] = {}
        if self.beta_corr:
            correlation = _mean_over_layers(student.projected, teacher.features, correlation_loss, self.alpha)
            terms["correlation"] = self.beta_corr * correlation
        if self.beta_mi:
            layers = zip(student.features, student.projected, self.same_width, strict=True)
            layer_of_length = {len(t): t for t in teacher.features}  # layers of images differ in positions
            rows = {n: self.sample(t) for n, t in layer_of_length.items()}
            student_rows = [(s if same else projected)[rows[len(s)]] for s, projected, same in layers]
            teacher_rows = [t[rows[len(t)]] for t in teacher.features]
            information = _mean_over_layers(student_rows, teacher_rows, mutual_information_loss, self.mi_form)
            terms["mutual_information"] = self.beta_mi * information
        return terms

    def sample(self, x: Tensor) -> Tensor | slice:
        """Indices of at most ``mi_samples`` of the rows of (n, d); a slice of all where there are no more."""
        if len(x) <= self.mi_samples:
            return slice(None)
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))[: self.mi_samples]
        return rows.to(x.device)


def _mean_over_layers(
    student: Sequence[Tensor], teacher: Sequence[Tensor], loss: Callable[..., Tensor], option: float | str
) -> Tensor:
    """Mean of a loss over layers of (n, d); zero for a layer of one sample, which has no statistics."""
    values = [x.sum() * 0 if x.shape[-2] < 2 else loss(x, t, option) for x, t in _together(student, teacher)]
    return torch.stack([value.mean() for value in values]).mean()


def _together(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (n, d) layers; small ones of equal shape as one pair of (layers, n, d): a third of the kernels.

    Copying large ones would cost more than the kernels it saves.
    """
    alike = len({x.shape for x in student}) == len({x.shape for x in teacher}) == 1
    if alike and student[0].numel() <= STACKED:
        return [(torch.stack(list(student)), torch.stack(list(teacher)))]
    return list(zip(student, teacher, strict=True))
