"""Linear maps from the student's width to the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from itrd_nlp.errors import UserError
from itrd_nlp.losses.base import Shapes

SHARING = ("per_layer", "shared", "none")
INITS = ("default", "identity")


def build_projectors(
    student_widths: Sequence[int], teacher_widths: Sequence[int], sharing: str = "per_layer", init: str = "default"
) -> list[nn.Module]:
    """One projection for each matched layer.

    Args:
        student_widths, teacher_widths: width of each matched layer.
        sharing: ``"per_layer"``; ``"shared"``: the same module for all layers; ``"none"``: no projection, equal widths.
        init: ``"default"`` (torch's) or ``"identity"``: at equal width the projection starts as the identity.

    Raises:
        UserError: an unknown option, or widths that the option cannot serve.
    """
    if sharing not in SHARING or init not in INITS:
        raise UserError(
            f"projection {sharing!r} with projection_init {init!r}: expected one of {SHARING} and one of {INITS}"
        )
    pairs = list(zip(student_widths, teacher_widths, strict=True))
    if sharing == "none":
        unequal = [pair for pair in pairs if pair[0] != pair[1]]
        if unequal:
            raise UserError(f'projection "none" with widths {unequal[0]}: expected equal widths; use "per_layer"')
        return [nn.Identity() for _ in pairs]
    if sharing == "shared":
        if len(set(pairs)) > 1:
            raise UserError(f'projection "shared" with widths {pairs}: expected one pair of widths; use "per_layer"')
        return [_linear(*pairs[0], init)] * len(pairs)
    return [_linear(*pair, init) for pair in pairs]


def project_unequal(shapes: Shapes) -> list[nn.Module]:
    """A linear projection for each matched layer whose widths differ, the identity for the others."""
    pairs = zip(shapes.student_widths, shapes.teacher_widths, strict=True)
    return [nn.Identity() if s == t else nn.Linear(s, t) for s, t in pairs]


def fit_projector(student: Tensor, teacher: Tensor) -> nn.Linear:
    """The projection of ordinary least squares, to measure a student with that has no trained one.

    It maximises the correlation of each feature with its teacher twin: on the samples that it is fitted to, no affine
    map gives a lower correlation loss. Measure on others.

    Args:
        student: (n, d_s) features.
        teacher: (n, d_t) features of the same n samples.

    Returns:
        From d_s to d_t; of several solutions the one of least norm.

    Raises:
        ValueError: different n, or no more samples than the student has features, which would fit anything.
    """
    n, width = student.shape
    if len(teacher) != n or n <= width + 1:
        raise ValueError(
            f"student {n, width}, teacher {tuple(teacher.shape)}: expected the same n samples, n > d_s + 1"
        )
    linear = nn.Linear(width, teacher.shape[1], device=student.device).requires_grad_(False)
    s, t = [x.detach().double().cpu() for x in (student, teacher)]
    slope = torch.linalg.lstsq(s - s.mean(0), t - t.mean(0), driver="gelsd").solution
    linear.weight.copy_(slope.mT)
    linear.bias.copy_(t.mean(0) - s.mean(0) @ slope)
    return linear


def _linear(student_width: int, teacher_width: int, init: str) -> nn.Linear:
    linear = nn.Linear(student_width, teacher_width)
    if init == "identity" and student_width == teacher_width:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear
