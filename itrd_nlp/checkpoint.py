"""A distiller on disk: the student as a plain folder, and what its losses train beside it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from itrd_nlp.distiller import Distiller
from itrd_nlp.errors import UserError

SIDECAR = "itrd_state.safetensors"
STUDENT, LOSSES = "student.", "losses."  # prefixes in a distiller's state


def save_distiller(distiller: Distiller, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the student as ``save_pretrained`` does, and the losses' own tensors into ``SIDECAR``.

    Args:
        state: of the distiller, where it does not hold its tensors itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = distiller.state_dict() if state is None else state
    distiller.student.save_pretrained(folder, state_dict=_inside(state, STUDENT))
    if losses := _inside(state, LOSSES):
        save_file(losses, folder / SIDECAR)


def load_distiller(distiller: Distiller, folder: Path) -> None:
    """Read what :func:`save_distiller` wrote; raises :class:`UserError` where the losses' part is missing."""
    saved = type(distiller.student).from_pretrained(folder)
    distiller.student.load_state_dict(saved.state_dict())
    if len(distiller.losses.state_dict()):
        if not (folder / SIDECAR).is_file():
            raise UserError(
                f"{folder} has no {SIDECAR}: expected a checkpoint of a run with the same losses; start afresh in "
                "another output_dir"
            )
        distiller.losses.load_state_dict(load_file(folder / SIDECAR))


def _inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by their names below it."""
    return {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}
