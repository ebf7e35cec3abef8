"""How one model is read: which of its modules, heads and inputs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.features import UNREAD, ForwardHooks, layer_modules, represent
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.losses.base import Representation
from itrd_nlp.utils.errors import UserError


class FeatureExtractor:
    """How one model is read: the modules to module, the heads to compare, and the pooling.

    Args:
        module_names: the module of each matched layer ; none where no loss looks at features.
        heads: names of the logits.
        pooling: from (batch, length, d) to (n, d).
        attention: the hooks of queries, keys and values; none where no loss looks at them.
        maps: the hooks of an image classifier's maps; none where no loss looks at them.
        stop: do not run the model beyond its last module; there are no logits then.
    """

    def __init__(
        self,
        module_names: Sequence[str],
        heads: Sequence[str],
        pooling: Pooling,
        attention: Sequence[str] = (),
        maps: Sequence[str] = (),
        stop: bool = False,
    ):
        self.module_names, self.heads = tuple(module_names), tuple(heads)
        self.attention, self.maps = tuple(attention), tuple(maps)
        self.pooling, self.stop = pooling, stop

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Any, Representation]:
        """Run ``model`` on what it accepts of ``batch``; returns its outputs and its representation."""
        outputs: Any = None
        with ForwardHooks(model, [*self.module_names, *self.attention, *self.maps], self.stop) as hooks:
            outputs = model(**accepted_inputs(model, batch))
        layers, maps = len(self.module_names), len(hooks.names) - len(self.maps)
        read = [_of_tokens(x, batch) for x in hooks.features[:maps]]
        features = self.pooling(read[:layers], batch) if layers else ()
        attention = Pooling("all_tokens")(read[layers:], batch) if self.attention else ()
        samples = self.pooling.samples(batch) if layers and "attention_mask" in batch else None
        said = represent(outputs, self.heads, features, batch)
        stages = [*hooks.features[maps:]]
        if stages and stages[-1].ndim == 4:  # what enters the classifier is a map itself
            stages[-1] = stages[-1].mean((2, 3))
        return outputs, said._replace(attention=attention, maps=tuple(stages), samples=samples)


def _of_tokens(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Without what a model appended to texts to fill its windows of attention, as Longformer does."""
    return x[:, : batch["input_ids"].shape[1]] if "input_ids" in batch and x.ndim == 3 else x


@torch.no_grad()
def check_features(model: nn.Module, batch: Mapping[str, Tensor], extractor: FeatureExtractor) -> None:
    """Refuse an encoder of texts whose layers, as hooks read them, are not what it calls its hidden states.

    Args:
        model: in eval mode.
        batch: some texts; one is left out where there are as many as tokens, so that no axis is taken for another.
        extractor: how the model would be read.

    Raises:
        UserError: a layer whose output is not (batch, length, d), or another than the model itself tells.
    """
    if batch["input_ids"].shape[0] == batch["input_ids"].shape[1]:
        batch = {key: value[1:] for key, value in batch.items()}
    shape, name = batch["input_ids"].shape, type(model).__name__
    inputs = {key: value for key, value in accepted_inputs(model, batch).items() if key not in find_labels(type(model))}
    names = layer_modules(model) if extractor.module_names else []
    with ForwardHooks(model, [*names, *extractor.attention]) as hooks:
        outputs = model(**inputs, output_hidden_states=True)
    for module, x in zip(hooks.names, hooks.features, strict=True):
        if x.ndim != 3 or len(x) != shape[0] or x.shape[1] < shape[1]:
            raise UserError(
                f"{name}: {module} gives {tuple(x.shape)} of {shape[0]} texts of {shape[1]} tokens: expected "
                f"(texts, tokens, width); {UNREAD}"
            )
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(shape, dtype=torch.bool)
    states = outputs.get("hidden_states") or outputs.get("encoder_hidden_states") or ()
    if len(states) == len(names):
        pairs = zip(hooks.features, states, strict=False)
        same = [_alike(_of_tokens(x, batch), state, mask) for x, state in pairs]
        if same:  # the last may be normalised once more before the model tells it
            same[-1] |= same[-2]
    else:  # nothing tells what a model appended
        same = [x.shape[1] == shape[1] for x in hooks.features[: len(names)]]
    for module in extractor.module_names:
        if not same[names.index(module)]:
            raise UserError(
                f"{name}: what {module} gives is not hidden state {names.index(module)} of the model: {UNREAD}"
            )


def _alike(x: Tensor, state: Tensor, mask: Tensor) -> bool:
    """Whether two (batch, length, d) tensors agree where tokens are real."""
    return x.shape == state.shape and torch.allclose(x[mask].float(), state[mask].float(), rtol=1e-4, atol=1e-5)


def accepted_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of ``batch`` that ``model.forward`` names; another model may need the rest."""
    names = inspect.signature(model.forward).parameters
    return {key: value for key, value in batch.items() if key in names}
