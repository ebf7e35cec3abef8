"""How one model is read: which of its modules, heads and inputs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itrd_nlp.pooling import Pooling
from itrd_nlp.representation import Representation, Taps, layer_taps, represent


class Reader:
    """How one model is read: the modules to tap, the heads to compare, and the pooling.

    Args:
        tap_names: the module of each matched layer (see :class:`Taps`); none where no loss looks at features.
        heads: names of the logits.
        pooling: from (batch, length, d) to (n, d).
        attention: the taps of queries, keys and values; none where no loss looks at them.
        maps: the taps of an image classifier's maps; none where no loss looks at them.
        stop: do not run the model beyond its last tap; there are no logits then.
    """

    def __init__(
        self,
        tap_names: Sequence[str],
        heads: Sequence[str],
        pooling: Pooling,
        attention: Sequence[str] = (),
        maps: Sequence[str] = (),
        stop: bool = False,
    ):
        self.tap_names, self.heads = tuple(tap_names), tuple(heads)
        self.attention, self.maps = tuple(attention), tuple(maps)
        self.pooling, self.stop = pooling, stop

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Any, Representation]:
        """Run ``model`` on what it accepts of ``batch``; returns its outputs and its representation."""
        outputs: Any = None
        with Taps(model, [*self.tap_names, *self.attention, *self.maps], self.stop) as taps:
            outputs = model(**accepted_inputs(model, batch))
        layers, maps = len(self.tap_names), len(taps.names) - len(self.maps)
        features = self.pooling(taps.features[:layers], batch) if layers else ()
        attention = Pooling("all_tokens")(taps.features[layers:maps], batch) if self.attention else ()
        samples = self.pooling.samples(batch) if layers and "attention_mask" in batch else None
        said = represent(outputs, self.heads, features, batch)
        stages = [*taps.features[maps:]]
        if stages and stages[-1].ndim == 4:  # what enters the classifier is a map itself
            stages[-1] = stages[-1].mean((2, 3))
        return outputs, said._replace(attention=attention, maps=tuple(stages), samples=samples)


@torch.no_grad()
def layer_features(model: nn.Module, batch: Mapping[str, Tensor], layer: int = -1, pooling: str = "tokens") -> Tensor:
    """What a loss sees of one layer of a model, in eval mode.

    Args:
        batch: tensors of shape (batch, ...).
        layer: from 1, 0 is the embedding output, -1 the last.
        pooling: see :class:`Pooling`.

    Returns:
        (n, d) features.
    """
    reader = Reader([layer_taps(model)[layer]], (), Pooling(pooling), stop=True)
    training = model.training
    try:
        return reader(model.eval(), batch)[1].features[0]
    finally:
        model.train(training)


def accepted_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of ``batch`` that ``model.forward`` names; another model may need the rest."""
    names = inspect.signature(model.forward).parameters
    return {key: value for key, value in batch.items() if key in names}
