"""Forward passes of a model over many texts or images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import PAD_MULTIPLE, input_names

Batches = Iterator[tuple[np.ndarray, Mapping[str, Tensor], Any]]


@torch.no_grad()
def run_batches(
    model: PreTrainedModel,
    lengths: Sequence[int],
    make_batch: Callable[[np.ndarray], Mapping[str, Tensor]],
    batch_size: int = 32,
    unit: str = "",
) -> Batches:
    """Run a model on n examples in batches of similar length, the longest first.

    Args:
        lengths: n lengths; examples of equal length keep their order.
        make_batch: makes the model's inputs from the indices of a batch's examples.
        batch_size: examples per forward pass.
        unit: what a progress bar counts, e.g. "text"; no bar if empty.

    Yields:
        The indices of a batch's examples, the batch on the model's device, and the outputs.

    Raises:
        UserError: a ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: expected 1 or more examples")
    order = np.argsort(-np.asarray(lengths), kind="stable")
    with tqdm(total=len(order), desc="Predicting", unit=unit, disable=not unit) as bar:
        for begin in range(0, len(order), batch_size):
            indices = order[begin : begin + batch_size]
            batch = {name: values.to(model.device) for name, values in make_batch(indices).items()}
            yield indices, batch, model(**batch)
            bar.update(len(indices))


def run_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Mapping[str, Sequence[Any]],
    batch_size: int = 32,
    unit: str = "",
) -> Batches:
    """Like :func:`run_batches`, over columns of tokenised texts, ``length`` among them."""
    accepted = input_names(model)
    names = [name for name in tokenizer.model_input_names if name in accepted and name in features]
    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_MULTIPLE)

    def make_batch(indices: np.ndarray) -> Mapping[str, Tensor]:
        return pad([{name: features[name][index] for name in names} for index in indices])

    return run_batches(model, features["length"], make_batch, batch_size, unit)
