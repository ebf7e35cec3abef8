"""Widths of encoders, and the weights that belong to some of their units."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from itrd_nlp.utils.errors import UserError

DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob")  # BERT's names
INNER = ("intermediate_size", "hidden_dim", "ffn_dim")  # what configs call the width inside a feed-forward


class Widths(NamedTuple):
    """The sizes of an encoder that a width cut changes."""

    hidden: int  # units that pass from layer to layer
    heads: int  # of a layer's attention
    inner: int  # units between the two matrices of a feed-forward; 0 where the config does not say

    def fields(self, config: PretrainedConfig) -> dict[str, int]:
        """The config fields that hold them; an ``embedding_size`` that is the hidden size stays so."""
        fields = {"hidden_size": self.hidden, "num_attention_heads": self.heads}
        if self.inner:
            fields[_inner_field(config)] = self.inner
        if getattr(config, "embedding_size", 0) == config.hidden_size:
            fields["embedding_size"] = self.hidden
        return fields


class Axis(NamedTuple):
    """What one dimension of a weight indexes; it has ``blocks x units x size`` entries."""

    unit: str = ""  # "hidden", "heads" or "inner"; empty where no width decides the size
    blocks: int = 1  # how often all units follow each other: 3 in a fused projection to queries, keys and values
    size: int = 1  # entries of a unit: those of a head


Axes = dict[str, tuple[Axis, ...]]  # name of a weight -> its dimensions


class Units(NamedTuple):
    """Indices of the units that a narrower model keeps."""

    hidden: Tensor
    heads: list[Tensor]  # of each layer of the source
    inner: list[Tensor]  # of each layer of the source


def widths_of(config: PretrainedConfig) -> Widths:
    """The widths that a config names."""
    return Widths(
        config.hidden_size, getattr(config, "num_attention_heads", 1), getattr(config, _inner_field(config), 0)
    )


def with_common_names(config: PretrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with widths by the names that all configs share: ``hidden_size`` for a DistilBERT's ``dim``.

    Its ``hidden_dim`` has no such name: there, ``intermediate_size`` becomes ``hidden_dim``. BERT's two names of
    dropout become those of a config that has others, that of attention or all the rest; none where it has no such one.
    """
    names = {own: common for common, own in config.attribute_map.items()}
    if inner := _inner_field(config):
        names["intermediate_size"] = inner
    renamed = {names.get(name, name): value for name, value in overrides.items()}
    fields = {**config.to_dict(), **config.attribute_map}
    own = [name for name, value in fields.items() if "dropout" in name and type(value) in (int, float)]
    for name in DROPOUTS:
        if name in renamed and name not in fields:
            value = renamed.pop(name)
            for each in own:
                if each.startswith("attention") == (name == DROPOUTS[0]):
                    renamed.setdefault(each, value)
    return renamed


def cut_widths(config: PretrainedConfig, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], Widths]:
    """The overrides with what follows from their widths, and the widths of the student.

    Heads keep their size, so that the hidden size decides their number.

    Args:
        config: of the source.
        overrides: by their common names.

    Raises:
        UserError: a width above the source's, or no whole number of heads.
    """
    before, inner = widths_of(config), _inner_field(config)
    if type(before.heads) is not int:
        raise UserError(f"a {config.model_type} model has {before.heads} heads by stage: expected layers of one width")
    hidden, within = overrides.get("hidden_size", before.hidden), overrides.get(inner, before.inner)
    if type(hidden) is not int or type(within) is not int:  # refused with the config's own words
        return dict(overrides), before
    size = before.hidden // before.heads
    _check_width("hidden_size", hidden, before.hidden, size)
    _check_width(inner, within, before.inner, 1)
    after = Widths(hidden, hidden // size, within)
    if overrides.get("num_attention_heads", after.heads) != after.heads:
        raise UserError(
            f"num_attention_heads={overrides['num_attention_heads']} with hidden_size={hidden}: heads keep their size "
            f'of {size}, which makes {after.heads}; leave it out, or write init="random" for weights that start afresh'
        )
    if hidden == before.hidden:
        return dict(overrides), after
    return {**after.fields(config), **overrides}, after


def _check_width(name: str, value: int, most: int, step: int) -> None:
    if value != most and not (0 < value < most and value % step == 0):
        multiple = f" and a multiple of {step}, the size of a head" if step > 1 else ""
        raise UserError(
            f"{name}={value}: expected at most the source's {most}{multiple}; write such a number, or "
            'init="random" for weights that start afresh'
        )


def _inner_field(config: PretrainedConfig) -> str:
    return next((name for name in INNER if hasattr(config, name)), "")


def slice_weights(weights: Mapping[str, Tensor], axes: Axes, units: Units, prefix: str) -> dict[str, Tensor]:
    """Copies of weights with the entries of some units alone.

    Args:
        weights: by name; those of a layer are called ``{prefix}.{index}...``.
        axes: of these weights.
        units: their indices, in the order in which they are wanted.
        prefix: name of the list of layers.
    """
    narrow = {}
    for name, weight in weights.items():
        layer = layer_of(name, prefix)
        for dim, axis in enumerate(axes[name]):
            if axis.unit:
                # heads outside the layers, of relative positions, are the same in all layers
                indices = units.hidden if axis.unit == "hidden" else getattr(units, axis.unit)[layer or 0]
                entries = torch.arange(weight.shape[dim]).view(axis.blocks, -1, axis.size)[:, indices].flatten()
                weight = weight.index_select(dim, entries.to(weight.device))
        narrow[name] = weight
    return narrow


def layer_of(name: str, prefix: str) -> int | None:
    """Index of the layer to which a weight or module belongs; None outside the layers."""
    return int(name.removeprefix(f"{prefix}.").partition(".")[0]) if name.startswith(f"{prefix}.") else None


def has_shared_heads(axes: Axes, prefix: str) -> bool:
    """Whether weights outside the layers have entries by head, as MPNet's relative positions do."""
    return any(axis.unit == "heads" for name in axes if layer_of(name, prefix) is None for axis in axes[name])
