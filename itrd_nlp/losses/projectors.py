"""Linear maps from the student's width to the teacher's."""

from collections.abc import Sequence

from torch import nn

from itrd_nlp.losses.base import Shapes
from itrd_nlp.utils.errors import UserError

SHARING = ("per_layer", "shared", "none")
INITS = ("default", "identity")


def build_projectors(
    student_widths: Sequence[int], teacher_widths: Sequence[int], sharing: str = "per_layer", init: str = "default"
) -> list[nn.Module]:
    """One projection for each matched layer.

    Args:
        student_widths, teacher_widths: width of each matched layer.
        sharing: ``"per_layer"``; ``"shared"``: one module for all layers; ``"none"``: no projection, for equal widths.
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


def _linear(student_width: int, teacher_width: int, init: str) -> nn.Linear:
    linear = nn.Linear(student_width, teacher_width)
    if init == "identity" and student_width == teacher_width:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear
