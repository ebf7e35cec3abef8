"""Where the student of a run comes from."""

from collections.abc import Mapping
from typing import Any

from itrd_nlp.experiments.config import RunArguments


def sources_of(run_args: RunArguments, distils: bool) -> dict[str, str]:
    """The models that a run's student comes from: ``teacher`` where it distils, and what it ``started from``.

    Returns:
        Role -> folder, Hub id, or name of an architecture that was trained from scratch.
    """
    teacher = _named(run_args.teacher)
    start = run_args.student if isinstance(run_args.student, str) else run_args.student.get("from")
    if start in (None, "teacher"):
        own = {"model_type", "timm"} & {*run_args.student}  # a new model
        start = None if own else teacher
    found = {"teacher": teacher} if distils else {}
    return found if start in (None, *found.values()) else {**found, "started from": str(start)}


def _named(spec: str | Mapping[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("timm") or spec.get("model_type"))
