"""Samples gathered from all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
