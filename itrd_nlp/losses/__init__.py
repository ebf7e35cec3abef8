"""All distillation losses by name, and the function that builds those of a recipe."""

import inspect
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from itrd_nlp.losses.base import DistillationLoss, Shapes
from itrd_nlp.losses.cosine import CosineLoss
from itrd_nlp.losses.crd import CRDLoss
from itrd_nlp.losses.functional import correlation_loss, mutual_information_loss
from itrd_nlp.losses.itrd import ITRDLoss
from itrd_nlp.losses.kd import KDLoss
from itrd_nlp.losses.listwise import ListwiseLoss
from itrd_nlp.losses.margin_mse import MarginMSELoss
from itrd_nlp.losses.minilmv2 import MiniLMv2Loss
from itrd_nlp.losses.reviewkd import ReviewKDLoss
from itrd_nlp.losses.srd import SRDLoss
from itrd_nlp.losses.textbrewer import TextBrewerLoss
from itrd_nlp.losses.vkd import VkDLoss
from itrd_nlp.losses.wcord import WCoRDLoss
from itrd_nlp.utils.errors import UserError, nearest

__all__ = [
    "LOSSES",
    "CRDLoss",
    "CosineLoss",
    "DistillationLoss",
    "ITRDLoss",
    "KDLoss",
    "ListwiseLoss",
    "MarginMSELoss",
    "MiniLMv2Loss",
    "ReviewKDLoss",
    "SRDLoss",
    "Shapes",
    "TextBrewerLoss",
    "VkDLoss",
    "WCoRDLoss",
    "build_losses",
    "correlation_loss",
    "mutual_information_loss",
    "of_losses",
]

LOSSES: dict[str, type[DistillationLoss]] = {
    "itrd": ITRDLoss,
    "kd": KDLoss,
    "cosine": CosineLoss,
    "crd": CRDLoss,
    "listwise": ListwiseLoss,
    "margin_mse": MarginMSELoss,
    "minilmv2": MiniLMv2Loss,
    "reviewkd": ReviewKDLoss,
    "srd": SRDLoss,
    "textbrewer": TextBrewerLoss,
    "vkd": VkDLoss,
    "wcord": WCoRDLoss,
}

SCALARS = (bool, int, float, str, NoneType)  # types of options that are checked


def build_losses(options: Mapping[str, Mapping[str, Any] | None], shapes: Shapes) -> nn.ModuleDict:
    """Build the losses that a recipe names, e.g. ``{"itrd": {"alpha": 1.01}, "kd": {}}``.

    Raises:
        UserError: an unknown loss or option, or a value of the wrong type; the nearest known name is suggested.
    """
    losses = nn.ModuleDict()
    for name, values in options.items():
        if name not in LOSSES:
            raise UserError(f"loss {name!r} is not known: expected one of {sorted(LOSSES)}{nearest(name, LOSSES)}")
        if not isinstance(values, Mapping | None):
            raise UserError(f"loss {name!r} has the options {values!r}: expected a mapping such as {{weight: 1.0}}")
        known = [p for p in inspect.signature(LOSSES[name]).parameters if p != "shapes"]
        kinds = _scalar_options(LOSSES[name])
        for key, value in (values or {}).items():
            if key not in known:
                raise UserError(f"loss {name!r} has no option {key!r}: expected one of {known}{nearest(key, known)}")
            if key in kinds and not any(_is_of(value, kind) for kind in kinds[key]):
                expected = " or ".join(kind.__name__.removesuffix("Type") for kind in kinds[key])
                raise UserError(f"loss {name!r} with {key} {value!r}: a value of the wrong type, expected {expected}")
        losses[name] = LOSSES[name](shapes, **(values or {}))
    return losses


def _scalar_options(loss: type[DistillationLoss]) -> dict[str, tuple[type, ...]]:
    """The types of those options of a loss that are annotated with a scalar type, or a union of such types."""
    try:
        hints = get_type_hints(loss.__init__)
    except (NameError, AttributeError, TypeError, SyntaxError):  # a name that is imported for type checkers alone
        return {}
    unions = (Union, UnionType)
    kinds = {name: get_args(hint) if get_origin(hint) in unions else (hint,) for name, hint in hints.items()}
    return {name: types for name, types in kinds.items() if all(kind in SCALARS for kind in types)}


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is of a scalar type: a boolean is not a number, and a whole number is a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def of_losses(losses: Iterable[str], flag: str) -> list[str]:
    """The named losses whose class sets a flag of :class:`DistillationLoss`, such as ``reads_logits``.

    An unknown name counts as the base class: :func:`build_losses` refuses it.
    """
    return [name for name in losses if getattr(LOSSES.get(name, DistillationLoss), flag)]
