"""The calibration set: batches on which a source model shows which of its layers and units matter."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.utils.errors import UserError

Batch = dict[str, Tensor]


def calibration_batches(
    model: PreTrainedModel, calibration: Iterable[Mapping[str, Any]] | None, what: str
) -> list[Batch]:
    """The batches on a model's device, without labels.

    Args:
        calibration: batches of model inputs, each entry (batch, ...).
        what: the option that needs them, for a message.

    Raises:
        UserError: none, or something else than batches of tensors with ``input_ids``.
    """
    if calibration is None:
        raise UserError(
            f"{what} is chosen by what the source does on a calibration set: expected calibration=[batch, ...] of "
            "model inputs, e.g. the first 128 training examples"
        )
    labels, device = find_labels(type(model)), model.device
    batches = []
    for batch in calibration:
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise UserError(
                f"calibration has a batch of {type(batch).__name__}: expected mappings of tensors with input_ids of "
                '(batch, tokens), as a tokenizer returns them with return_tensors="pt"'
            )
        batches.append({key: x.to(device) for key, x in batch.items() if isinstance(x, Tensor) and key not in labels})
    if not batches:
        raise UserError("calibration is empty: expected at least one batch of model inputs")
    return batches
