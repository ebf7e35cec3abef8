"""The callback for losses and gradients that are not finite: the step stops the run, or is skipped and counted."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from itrd_nlp.losses.base import INDEX
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)


class NonFiniteCallback(TrainerCallback, ExportableState):
    """Checks the terms of each micro-batch and the gradient, once a step.

    Skipping leaves weights and optimizer as they were before the step, on all ranks alike; the schedule goes on. The
    count survives in checkpoints.

    Args:
        skip: skip such a step instead of stopping the run.
    """

    def __init__(self, skip: bool):
        self.skip, self.skipped = skip, 0
        self._terms: list[tuple[str, Tensor]] = []  # of the step's micro-batches
        self._indices: list[Tensor] = []  # of their examples

    def state(self) -> dict[str, Any]:
        return {"args": {"skip": self.skip}, "attributes": {"skipped": self.skipped}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.skipped = saved["attributes"]["skipped"] if saved else 0

    def watch(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Record the terms and examples of a micro-batch, without waiting for the device, as :meth:`check` does."""
        self._terms += [(name, value.detach()) for name, value in terms.items()]
        if INDEX in batch:
            self._indices.append(batch[INDEX])

    def check(self, norm: Tensor | float | None, model: nn.Module, step: int, scale: float | None = None) -> bool:
        """Check a step's gradient and terms before the optimizer takes it; drop the gradient of a step to skip.

        Terms are checked beside the gradient, as the term of a batch without a token is NaN but has no gradient. All
        ranks decide alike.

        Args:
            norm: of the whole gradient; None where DeepSpeed has none, after an overflow in fp16.
            model: what is trained.
            step: from 1.
            scale: by which fp16 multiplies the loss; it skips steps whose gradient overflows by itself, and lowers the
                scale. Below 1 it is not the scale that overflows.

        Returns:
            False where the step is skipped.

        Raises:
            UserError: a term or the gradient is not finite, and the step is not to be, or cannot be, skipped.
        """
        terms, numbered, self._terms, self._indices = self._terms, self._indices, [], []
        if _finite_on_all_ranks(norm, [value for _, value in terms]):
            return True
        broken = gather_object([(name, value.item()) for name, value in terms if not value.isfinite()])
        indices = gather_object([str(index) for batch in numbered for index in batch.tolist()])
        if not broken and (norm is None or (scale is not None and scale >= 1)):
            return True
        where = f"step {step}" + (f" (training examples {', '.join(indices)})" if indices else "")
        if not self.skip:
            fault = f"{broken[0][0]} is {broken[0][1]}" if broken else "the gradient is not finite"
            raise UserError(
                f"{fault} in {where}: expected numbers; lower the learning rate or the weight of that loss, or "
                "--nonfinite skip"
            )
        _check_statistics(model, where)
        model.zero_grad(set_to_none=True)
        self.skipped += 1
        logger.warning(f"[skipped] {where}: its loss or gradient is not finite")
        return False


def _finite_on_all_ranks(norm: Tensor | float | None, terms: Sequence[Tensor]) -> bool:
    """Whether the gradient's norm and all terms are finite, on every rank; waits for the device once."""
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # as FSDP2 gives it
    device = terms[0].device if terms else getattr(norm, "device", "cpu")
    if isinstance(norm, Tensor):
        norm = norm.to(device)
    else:
        norm = torch.full((), math.nan if norm is None else norm, device=device)
    finite = torch.stack([*terms, norm]).isfinite().all().int()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite)


def _check_statistics(model: nn.Module, where: str) -> None:
    """Refuse to skip a step whose values are already in the statistics of batch normalisation."""
    for name, module in model.named_modules():
        statistics = list(module.buffers(recurse=False)) if isinstance(module, nn.modules.batchnorm._BatchNorm) else []
        if not all(value.isfinite().all() for value in statistics):
            raise UserError(
                f"{where} cannot be skipped: {name} has taken up values that are not finite; start again without these "
                "examples, or with a lower learning rate"
            )
