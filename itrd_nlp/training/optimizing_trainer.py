"""A Trainer with learning rates of its own: for what losses train, and at milestones."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from itrd_nlp.training.loaders import LoadingTrainer
from itrd_nlp.utils.errors import UserError


class OptimizingTrainer(LoadingTrainer):
    """A ``Trainer`` that honours ``decay_all``, ``lr_milestones`` and ``projector_learning_rate``."""

    lr_scheduler: Any
    _epoch_batches = 0  # before there is a data loader

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's, whose batches ``lr_milestones`` count."""
        loader = super().get_train_dataloader()
        if self.args.lr_milestones:
            self._epoch_batches = _count_batches(loader)
        return loader

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's without those of batch and group normalisation, as it leaves out other ones and biases.

        With ``decay_all``, all parameters.
        """
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
        norms = {name for name, module in model.named_modules() if isinstance(module, kinds)}
        return [name for name in super().get_decay_parameter_names(model) if name.rpartition(".")[0] not in norms]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's; at each of ``lr_milestones``, in epochs, the rate falls to a tenth."""
        args = self.args
        if not args.lr_milestones or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        batches = self._epoch_batches or _count_batches(super().get_train_dataloader())
        steps = math.ceil(batches / args.gradient_accumulation_steps)
        milestones = [round(steps * epoch) for epoch in args.lr_milestones]
        self.lr_scheduler = MultiStepLR(self.optimizer if optimizer is None else optimizer, milestones)
        self._created_lr_scheduler = True  # another call of train() makes another one
        return self.lr_scheduler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's; with ``projector_learning_rate``, what the losses train gets groups of its own."""
        rate, is_new = self.args.projector_learning_rate, self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if rate is None or not is_new:
            return optimizer
        projectors = {id(p) for p in self.distiller.losses.parameters()}
        for group in list(optimizer.param_groups):
            moved = [p for p in group["params"] if id(p) in projectors]
            group["params"] = [p for p in group["params"] if id(p) not in projectors]
            if moved:
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer


def _count_batches(loader: DataLoader) -> int:
    """How many batches an epoch has; :class:`UserError` for streamed data, which do not say."""
    if not has_length(loader):
        raise UserError(
            "lr_milestones with streamed data, whose epochs have no known length: expected a dataset with a length; "
            "choose an lr_scheduler_type instead"
        )
    return len(loader)
