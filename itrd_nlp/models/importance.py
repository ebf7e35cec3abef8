"""The importance of hidden units, heads and inner units on a calibration set (Minitron, Muralidharan et al. 2024)."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.feature_extractor import without_appended
from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.distillation.pooling import text_mask
from itrd_nlp.distillation.probe import outputs_of
from itrd_nlp.models.calibration_set import Batch
from itrd_nlp.models.width import Axes, Axis, Units, Widths, has_shared_heads, layer_of
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import eval_mode


def choose_units(
    model: PreTrainedModel, axes: Axes, widths: Widths, kept_layers: Sequence[int], batches: Sequence[Batch]
) -> Units:
    """The most important units of a model, so many as a narrower one has (Muralidharan et al. 2024, section 2.2).

    Importance is a sum over all tokens but padding: of a hidden unit, its absolute value after each normalisation; of a
    head, the L2 norm of its output; of an inner unit, its absolute value after the nonlinearity, times its gate where
    there is one. Hidden units are the same in all layers, as they pass from layer to layer. Heads and inner units are
    chosen in each layer; heads once for all layers, by their mean share, where weights outside the layers have entries
    by head.

    Args:
        model: the source.
        axes: what the dimensions of its weights index.
        widths: how many units the narrower model has.
        kept_layers: the layers that it keeps, and in which hidden units count.
        batches: the calibration set.

    Returns:
        Increasing indices; of equally important units the first.
    """
    prefix, layers = find_layers(model)
    totals, every = _totals(model, axes, prefix, batches), range(len(layers))

    def importance(unit: str, *among: int | None) -> Tensor:
        values = [value for (name, kind), value in totals.items() if kind == unit and layer_of(name, prefix) in among]
        if not values:
            raise UserError(f"{type(model).__name__}: the calibration set does not show what its {unit} units do")
        return torch.stack(values).sum(0)

    heads = [importance("heads", layer) for layer in every]
    if has_shared_heads(axes, prefix):
        heads = [torch.stack([heads[i] / heads[i].sum() for i in kept_layers]).mean(0)] * len(heads)
    inner = [importance("inner", layer) for layer in every] if widths.inner else []
    hidden = importance("hidden", None, *kept_layers)
    return Units(
        _highest(hidden, widths.hidden),
        [_highest(value, widths.heads) for value in heads],
        [_highest(value, widths.inner) for value in inner],
    )


def _highest(importance: Tensor, count: int) -> Tensor:
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _totals(model: PreTrainedModel, axes: Axes, prefix: str, batches: Sequence[Batch]) -> dict[tuple[str, str], Tensor]:
    """(module, unit) -> (units,) sums over the tokens."""
    totals: dict[tuple[str, str], Tensor] = {}
    with eval_mode(model):
        for batch in batches:
            add = partial(_add, totals, batch, text_mask(batch))
            with ExitStack() as hooks:
                for name, module in model.named_modules():
                    for hook in _hooks(name, module, axes, prefix, add):
                        hooks.enter_context(hook)
                outputs_of(model, batch)
    return totals


def _add(totals: dict[tuple[str, str], Tensor], batch: Batch, mask: Tensor, name: str, x: Any, axis: Axis) -> None:
    """Add what a module reads or makes of a batch, where ``mask`` says which tokens count."""
    if not isinstance(x, Tensor):
        return
    x = without_appended(x, batch)
    if x.shape[:-1] == mask.shape:  # not the relative positions that DeBERTa normalises, nor a pooled text
        sizes = x[mask].float().unflatten(-1, (-1, axis.size)).norm(dim=-1)  # (tokens, units): of one entry, |x|
        totals[name, axis.unit] = totals.get((name, axis.unit), 0) + sizes.sum(0).cpu().double()


def _hooks(
    name: str, module: nn.Module, axes: Axes, prefix: str, add: Callable[[str, Tensor, Axis], None]
) -> list[Any]:
    """The forward hook of a module whose input or output shows units; none of other modules.

    Heads and inner units enter a matrix of their layer; hidden units leave a normalisation, a module without matrices.
    """
    own = [axes[f"{name}.{key}"] for key, _ in module.named_parameters(recurse=False)]
    if isinstance(module, nn.Linear) and layer_of(name, prefix) is not None:
        columns = axes[f"{name}.weight"][1]
        if columns.unit in ("heads", "inner"):
            return [module.register_forward_pre_hook(lambda module, args: add(name, args[0], columns))]
    elif own and all(len(dims) == 1 and dims[0] == Axis("hidden") for dims in own):
        return [module.register_forward_hook(lambda module, args, output: add(name, output, Axis("hidden")))]
    return []
