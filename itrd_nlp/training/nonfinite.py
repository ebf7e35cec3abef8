"""Numbers stay numbers: the first loss or gradient that is none stops the run, or its step is skipped and counted."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from itrd_nlp.losses.base import INDEX
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)


class NonFiniteCallback(TrainerCallback, ExportableState):
    """Watches the terms of each micro-batch, and looks at them and at the gradient once a step.

    Skipping leaves weights and optimizer as they were before the step, on all ranks alike; the schedule goes on. The
    count survives in checkpoints.

    Args:
        skip: skip such a step instead of stopping the run.
    """

    def __init__(self, skip: bool):
        self.skip, self.skipped = skip, 0
        # of this step, for each micro-batch: terms, places of the examples, whether all terms are finite
        self._seen: list[tuple[dict[str, Tensor], Tensor | None, Tensor]] = []

    def state(self) -> dict[str, Any]:
        return {"args": {"skip": self.skip}, "attributes": {"skipped": self.skipped}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.skipped = saved["attributes"]["skipped"] if saved else 0

    def watch(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Note the terms of a micro-batch. Nothing is read from the device here: :meth:`check` does it once a step.

        Args:
            terms: name -> scalar.
            batch: with the examples' places as ``INDEX``, where they have them.
        """
        values = {name: value.detach() for name, value in terms.items()}
        finite = torch.stack(list(values.values())).isfinite().all()
        self._seen.append((values, batch.get(INDEX), finite))

    def check(self, norm: Tensor | float | None, model: nn.Module, step: int, scaled: bool = False) -> bool:
        """Look at a step's gradient and terms before the optimizer takes it; drop it where the step is to be skipped.

        The terms are looked at for themselves, too: what a batch without a token makes of them has no gradient. All
        ranks come to the same end.

        Args:
            norm: of the whole gradient; None where DeepSpeed has none, after an overflow in fp16.
            model: what is trained.
            step: from 1.
            scaled: fp16 scales the loss: it skips steps whose gradient overflows by itself.

        Returns:
            Whether the step counts; it does not where it is skipped.

        Raises:
            UserError: a term or gradient that is no number, unless its step is skipped and was without consequence.
        """
        seen, self._seen = self._seen, []
        if _finite_on_all_ranks(norm, [finite for *_, finite in seen]):
            return True
        terms = [item for values, *_ in seen for item in values.items()]
        broken = gather_object([(name, value.item()) for name, value in terms if not value.isfinite()])
        places = gather_object([str(place) for _, index, _ in seen if index is not None for place in index.tolist()])
        if not broken and (scaled or norm is None):
            return True
        where = f"step {step}" + (f" (training examples {', '.join(places)})" if places else "")
        if not self.skip:
            told = f"{broken[0][0]} is {broken[0][1]}" if broken else "the gradient is not finite"
            raise UserError(
                f"{told} in {where}: expected numbers; lower the learning rate or the weight of that loss, or "
                "--nonfinite skip"
            )
        _check_statistics(model, where)
        model.zero_grad(set_to_none=True)
        self.skipped += 1
        logger.warning(f"[skipped] {where}: its loss or gradient is not finite")
        return False


def _finite_on_all_ranks(norm: Tensor | float | None, terms: Sequence[Tensor]) -> bool:
    """Whether a gradient's norm and all flags of terms say so, on every rank: one that says no stops all of them."""
    finite = norm is not None and math.isfinite(norm) and (not terms or bool(torch.stack([*terms]).all()))
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return finite
    device = terms[0].device if terms else getattr(norm, "device", "cpu")
    everywhere = torch.tensor(int(finite), device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere)


def _check_statistics(model: nn.Module, where: str) -> None:
    """Refuse to skip a step that batch normalisation has taken up."""
    for name, module in model.named_modules():
        statistics = list(module.buffers(recurse=False)) if isinstance(module, nn.modules.batchnorm._BatchNorm) else []
        if not all(value.isfinite().all() for value in statistics):
            raise UserError(
                f"{where} cannot be skipped: {name} has taken up values that are not finite; start again without these "
                "examples, or with a lower learning rate"
            )
