"""Numbers stay numbers: the first loss or gradient that is none stops the run, or its step is skipped and counted."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from itrd_nlp.errors import UserError
from itrd_nlp.losses.base import INDEX

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Guard(TrainerCallback, ExportableState):
    """Looks at each micro-batch's terms and at each step's gradient.

    Skipping leaves weights and optimizer as they were before the step, on all ranks alike; the schedule goes on. The
    count survives in checkpoints.

    Args:
        skip: skip such a step instead of stopping the run.
    """

    def __init__(self, skip: bool):
        self.skip, self.skipped = skip, 0
        self._places: list[int] = []  # of the examples of this step, where they are numbered

    def state(self) -> dict[str, Any]:
        return {"args": {"skip": self.skip}, "attributes": {"skipped": self.skipped}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.skipped = saved["attributes"]["skipped"] if saved else 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._places = []

    def check_terms(self, loss: Tensor, terms: Mapping[str, Tensor], batch: Mapping[str, Any], step: int) -> Tensor:
        """The loss of a micro-batch; to be skipped, it makes the gradient NaN, so that every rank knows.

        Args:
            loss: scalar to differentiate.
            terms: name -> scalar.
            batch: with the examples' places as ``INDEX``, where they have them.
            step: from 1.

        Raises:
            UserError: a term that is no number, unless it is to be skipped.
        """
        if INDEX in batch:
            self._places += batch[INDEX].tolist()
        if bool(torch.stack([value.detach() for value in terms.values()]).isfinite().all()):
            return loss
        if self.skip:
            return loss * math.nan
        name = next(name for name, value in terms.items() if not value.isfinite())
        raise UserError(
            f"{name} is {terms[name].item()} in step {step}{self._of_examples()}: expected numbers; lower the learning "
            "rate or the weight of that loss, or --nonfinite skip"
        )

    def check_gradient(self, norm: Tensor | float, model: nn.Module, step: int) -> None:
        """Drop the gradient of a step that is to be skipped.

        Args:
            norm: of the whole gradient.
            model: what is trained.
            step: from 1.

        Raises:
            UserError: a norm that is no number, unless its step is to be skipped and was without consequence.
        """
        if math.isfinite(norm):
            return
        if not self.skip:
            broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise UserError(
                f"the gradient of {broken[0] if broken else 'the loss'} is not finite in step {step}"
                f"{self._of_examples()}: expected numbers; lower the learning rate, or --nonfinite skip"
            )
        for name, module in model.named_modules():
            if isinstance(module, NORMALISATIONS) and module.running_var is not None:
                if module.running_mean.isfinite().all() and module.running_var.isfinite().all():
                    continue
                raise UserError(
                    f"step {step}{self._of_examples()} cannot be skipped: {name} has taken up values that are not "
                    "finite; start again without these examples, or with a lower learning rate"
                )
        model.zero_grad(set_to_none=True)
        self.skipped += 1
        print(f"[skipped] step {step}{self._of_examples()}: its loss or gradient is not finite", flush=True)

    def _of_examples(self) -> str:
        return f" (training examples {', '.join(map(str, self._places))})" if self._places else ""
