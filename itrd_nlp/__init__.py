"""Distil an encoder into a smaller one with the losses of ITRD, and measure what was kept."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itrd_nlp.experiments.shrink.shrink import shrink
    from itrd_nlp.inference.answering import answer
    from itrd_nlp.inference.reranking import rerank
    from itrd_nlp.inference.texts import classify
    from itrd_nlp.losses import LOSSES
    from itrd_nlp.losses.base import Representation
    from itrd_nlp.losses.functional import correlation_loss, mutual_information_loss
    from itrd_nlp.models.students import student_from_teacher
    from itrd_nlp.training.arguments import ITRDArguments
    from itrd_nlp.training.trainer import ITRDTrainer

__version__ = "0.1.0"
__all__ = [
    "LOSSES",
    "ITRDArguments",
    "ITRDTrainer",
    "Representation",
    "answer",
    "classify",
    "correlation_loss",
    "mutual_information_loss",
    "rerank",
    "shrink",
    "student_from_teacher",
]

_HOMES = {
    "LOSSES": "losses",
    "ITRDArguments": "training.arguments",
    "ITRDTrainer": "training.trainer",
    "Representation": "losses.base",
    "answer": "inference.answering",
    "classify": "inference.texts",
    "correlation_loss": "losses.functional",
    "mutual_information_loss": "losses.functional",
    "rerank": "inference.reranking",
    "shrink": "experiments.shrink.shrink",
    "student_from_teacher": "models.students",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing Trainer takes seconds, ``itrd --help`` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'itrd_nlp' has no attribute {name!r}")
    return getattr(import_module(f"itrd_nlp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
