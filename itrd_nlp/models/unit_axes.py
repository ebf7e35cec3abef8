"""Which units each dimension of an encoder's weights indexes, found alike for every architecture.

Two probes, models of its class in other widths, show which dimensions grow with which width.
"""

import itertools
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from itrd_nlp.distillation.feature_extractor import ForwardHooks
from itrd_nlp.distillation.layers import find_layers, layer_modules
from itrd_nlp.distillation.probe import outputs_of
from itrd_nlp.models.calibration_set import Batch
from itrd_nlp.models.new import resized_model
from itrd_nlp.models.width import Axes, Axis, Units, Widths, layer_of, slice_weights, widths_of
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import eval_mode


def unit_axes(source: PreTrainedModel, batch: Batch) -> Axes:
    """Find what each dimension of a model's weights indexes.

    A dimension that grows with the hidden size indexes hidden units, one that grows with the inner size inner units,
    one as large as the number of heads the heads. As heads together are as wide as the hidden size, the order in which
    a layer calls its matrices tells them apart: of those before the feed-forward, the last takes the heads' outputs,
    and the others feed them. The result is verified: a model with its units in another order must compute the same.

    Args:
        source: an encoder, with or without a head.
        batch: inputs that it takes.

    Raises:
        UserError: a weight, or the model, that cannot be cut in this way.
    """
    every, (small, large) = range(source.config.num_hidden_layers), _probe_widths(source.config)
    probe = _probe(source, small)
    with torch.device("meta"):
        wider = resized_model(source, every, large.fields(source.config)).state_dict()
    if not wider.keys() == probe.state_dict().keys() == source.state_dict().keys():
        raise _uncuttable(source, "its weights have other names in another width")
    axes = {}
    for name, weight in probe.state_dict().items():
        sizes = zip(weight.shape, wider[name].shape, strict=True)
        axes[name] = tuple(_axis(source, name, sizes_of_dim, small, large) for sizes_of_dim in sizes)
    prefix, _ = find_layers(probe)
    batch = {key: value[:2].cpu() for key, value in batch.items()}
    try:
        with eval_mode(probe):
            _mark_heads(probe, axes, prefix, batch, small.hidden // small.heads)
            _verify(probe, axes, small, prefix, batch)
    except UserError as error:
        raise _uncuttable(source, str(error)) from error
    return axes


def _probe_widths(config: PretrainedConfig) -> list[Widths]:
    """Two widths with heads of the same size; no hidden or inner size is another number of the config."""
    before = widths_of(config)
    size, numbers = before.hidden // before.heads, {n for n in config.to_dict().values() if isinstance(n, int)}
    heads = [count for count in (2, 3, 5, 7, 11, 13, 17) if count * size not in numbers][:2]
    # 19 : 23 is the ratio of no two numbers of heads
    inner = next(pair for m in itertools.count(2) if numbers.isdisjoint(pair := (19 * m, 23 * m)))
    return [Widths(n * size, n, i if before.inner else 0) for n, i in zip(heads, inner, strict=True)]


def _probe(source: PreTrainedModel, widths: Widths) -> PreTrainedModel:
    """A model whose weights are all random, and such that tokens stay apart from layer to layer, as attention tells
    nothing of equal ones: matrices are large, biases and the spread of scales small."""
    try:
        probe = resized_model(source, range(source.config.num_hidden_layers), widths.fields(source.config)).float()
    except UserError as error:
        raise _uncuttable(source, f"it does not take other widths: {error}") from None
    probe.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in probe.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 2 / weight.shape[-1] ** 0.5, generator=generator)
            else:
                weight.normal_(float(name.endswith("weight")), 0.1, generator=generator)
    return probe


def _axis(source: PreTrainedModel, name: str, sizes: tuple[int, int], small: Widths, large: Widths) -> Axis:
    """What a dimension indexes that has these sizes in two widths."""
    if sizes[0] == sizes[1]:
        return Axis()
    for unit in ("hidden", "inner"):
        one, other = getattr(small, unit), getattr(large, unit)
        if one and sizes[0] % one == 0 and sizes[0] // one * other == sizes[1]:
            return Axis(unit, blocks=sizes[0] // one)
    if sizes == (small.heads, large.heads):
        return Axis("heads")
    raise _uncuttable(source, f"{name} follows the widths in an unknown way")


def _mark_heads(probe: PreTrainedModel, axes: Axes, prefix: str, batch: Batch, size: int) -> None:
    """Change the axes of matrices around the attention from hidden units to heads of ``size`` entries."""
    called: dict[str, None] = {}  # names of matrices, in the order of their calls
    matrices = {
        name: module
        for name, module in probe.named_modules()
        if isinstance(module, nn.Linear) and layer_of(name, prefix) is not None
    }
    with ExitStack() as hooks:
        for name, module in matrices.items():
            hooks.enter_context(module.register_forward_hook(lambda *_, name=name: called.setdefault(name)))
        outputs_of(probe, batch)
    if unused := sorted(matrices.keys() - called.keys()):
        raise UserError(f"{unused[0]} took no part in the calibration batch")
    for layer in range(probe.config.num_hidden_layers):
        names = [name for name in called if layer_of(name, prefix) == layer]
        inside = [any(axis.unit == "inner" for axis in axes[f"{name}.weight"]) for name in names]
        attention = names[: inside.index(True)] if True in inside else names
        for name in attention:
            if any(axis.unit != "hidden" for axis in axes[f"{name}.weight"]):
                raise UserError(f"{name} has a side that does not follow hidden_size, as matrices of attention do")
        for name in attention[:-1]:
            rows, columns = axes[f"{name}.weight"]
            axes[f"{name}.weight"] = (rows._replace(unit="heads", size=size), columns)
            if f"{name}.bias" in axes:
                axes[f"{name}.bias"] = (rows._replace(unit="heads", size=size),)
        for name in attention[-1:]:
            rows, columns = axes[f"{name}.weight"]
            axes[f"{name}.weight"] = (rows, columns._replace(unit="heads", size=size))


def _verify(probe: PreTrainedModel, axes: Axes, widths: Widths, prefix: str, batch: Batch) -> None:
    """Refuse axes that are wrong: with its units in another order, each layer of the probe must return the same."""
    layers, generator = range(probe.config.num_hidden_layers), torch.Generator().manual_seed(1)
    heads = [torch.arange(widths.heads).roll(1)] * len(layers)
    inner = [torch.randperm(widths.inner, generator=generator) for _ in layers]
    units = Units(torch.randperm(widths.hidden, generator=generator), heads, inner)
    before = _outputs(probe, batch)
    probe.load_state_dict(slice_weights(probe.state_dict(), axes, units, prefix))
    after = _outputs(probe, batch)
    for name, value in before.items():
        if not name.endswith("logits"):
            value = value[..., units.hidden]
        if not torch.allclose(value, after[name], rtol=1e-3, atol=1e-3 * float(value.std())):
            raise UserError(f"with its units in another order it returns another {name}")


def _outputs(probe: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """What each layer returns, and then the model: logits, or hidden states."""
    with ForwardHooks(probe, layer_modules(probe)) as hooks:
        outputs = outputs_of(probe, batch)
    layers = dict(zip(hooks.names, hooks.features, strict=True))
    return layers | {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def _uncuttable(source: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f"{type(source).__name__} cannot be cut in width: {reason}; leave hidden_size and intermediate_size out, or "
        'write init="random" for weights that start afresh'
    )
