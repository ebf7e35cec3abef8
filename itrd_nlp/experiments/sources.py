"""Where the student of a run comes from."""

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.training.model_card import OUTPUTS


def sources_of(run_args: RunArguments, distils: bool) -> dict[str, str]:
    """What a run's student comes from: its ``teacher`` if it distils, and the model that it ``started from``.

    Returns:
        Role -> folder, Hub id, or name of an architecture that was trained from scratch.
    """
    spec, student = run_args.teacher, run_args.student
    if spec is None:
        teacher = OUTPUTS
    else:
        teacher = spec if isinstance(spec, str) else str(spec.get("timm") or spec.get("model_type"))
    start = student if isinstance(student, str) else student.get("from", "teacher")
    if start == "teacher":
        is_new = not isinstance(student, str) and {"model_type", "timm"} & {*student}
        start = None if is_new else teacher
    sources = {"teacher": teacher} if distils else {}
    if start is not None and start not in sources.values():
        sources["started from"] = start
    return sources
