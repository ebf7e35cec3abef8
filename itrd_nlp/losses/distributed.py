"""Samples gathered from all processes, and values broadcast from the first."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from torch import Tensor

from itrd_nlp.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        count = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, count)
        ctx.rows = [int(rows) for rows in counts]
        padded = x.new_zeros(max(ctx.rows), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in ctx.rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, ctx.rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd may need its own again
        dist.all_reduce(total)
        return total.split(ctx.rows)[dist.get_rank()]


def gather_samples(x: Tensor) -> Tensor:
    """The rows of all processes, one process after the other.

    Every process computes the same loss from them. The gradient of a row is the sum over all these losses, so that its
    mean over processes, which data parallelism takes, is the gradient of that one loss.

    Args:
        x: (n, ...), of any n on each process.

    Returns:
        (sum of all n, ...).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


def from_first_rank(find: Callable[[], T], training_args: "TrainingArguments") -> T:
    """The value of ``find`` on the first rank, broadcast to every rank.

    Files may change while ranks read them, e.g. when another run writes them: ranks that each looked for themselves
    could disagree, and then wait for each other for ever.

    Raises:
        UserError: raised by the first rank, on every rank.
        RuntimeError: on the others, where the first fails in another way.
    """
    if training_args.world_size == 1:
        return find()
    message: list[Any] = [None, None]
    failed: Exception | None = None
    if training_args.process_index == 0:
        try:
            message[0] = find()
        except Exception as error:
            failed = error
            message[1] = error if isinstance(error, UserError) else RuntimeError(f"the first process failed: {error!r}")
    broadcast_object_list(message)
    if failed or message[1]:
        raise failed or message[1]
    return message[0]
