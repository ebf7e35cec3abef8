"""The callback that ends training, with a checkpoint, after the step in which a signal arrives."""

from typing import Any

import torch
from accelerate.utils import gather
from transformers import TrainerCallback

from itrd_nlp.training.interruption import Request


class StopCallback(TrainerCallback):
    """Ends training for a request, which the trainer sets anew for each training."""

    def __init__(self) -> None:
        self.request = Request()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.request.can_wait = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number = self.request.number
        if args.world_size > 1:  # all ranks stop after the same step
            number = int(gather(torch.tensor([number], device=args.device)).max())
        if number:  # a signal that came meanwhile counts after the next step, on all ranks
            self.request.number = number
            self.request.reached = f" after step {state.global_step} of {state.max_steps}"
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.request.reached and state.epoch % 1 and state.global_step < state.max_steps:  # the epoch is incomplete
            control.should_save = control.should_evaluate = control.should_log = False
