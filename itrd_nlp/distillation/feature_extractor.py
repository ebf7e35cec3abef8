"""How a model is read: forward hooks on its modules, gathered into the representation that losses compare."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from itrd_nlp.distillation.alignment import FIRST_TOKENS, align_features, align_spans, is_paired, teacher_view
from itrd_nlp.distillation.pooling import Pooling, real_tokens, token_mask
from itrd_nlp.losses.base import SPAN_HEADS, Representation
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import input_names

PADDING_LOGIT = -1e4  # of a span head: out of every softmax, and finite in half precision
UNREAD = "features of this architecture cannot be read, compare its logits alone (losses kd)"


class FeatureExtractor:
    """Runs a model and reads what the losses compare.

    Args:
        module_names: the module of each matched layer; none where no loss looks at features.
        heads: names of the logits.
        pooling: from (batch, length, d) to (n, d).
        attention: the modules of queries, keys and values; none where no loss looks at them.
        maps: the modules of an image classifier's maps; none where no loss looks at them.
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

    @property
    def stored(self) -> Pooling:
        """How features are cached: every token where losses see real ones, so that both poolings share a layer."""
        return Pooling("all_tokens") if self.pooling.spec == "tokens" else self.pooling

    @property
    def feature_outputs(self) -> list[str]:
        """What the cache calls each of the features."""
        return [_output(name, self.stored) for name in self.module_names]

    @property
    def attention_outputs(self) -> list[str]:
        """What the cache calls each of the queries, keys and values."""
        return [_output(name, Pooling("all_tokens")) for name in self.attention]

    def union(self, other: "FeatureExtractor") -> "FeatureExtractor":
        """One that reads what either reads of the same model; features of both are pooled alike."""
        names = ("module_names", "heads", "attention", "maps")
        modules, heads, attention, maps = [dict.fromkeys([*getattr(self, n), *getattr(other, n)]) for n in names]
        pooling = self.pooling if self.module_names else other.pooling
        return FeatureExtractor([*modules], [*heads], pooling, [*attention], [*maps], self.stop and other.stop)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], to_store: bool = False
    ) -> tuple[Any, Representation]:
        """The outputs of ``model`` for what it accepts of ``batch``, and its representation.

        With ``to_store``, features are pooled as the cache stores them.
        """
        pooling = self.stored if to_store else self.pooling
        outputs: Any = None  # where the hooks stop the model
        names = [*self.module_names, *self.attention, *self.maps]
        with ForwardHooks(model, names, self.stop) as hooks:
            outputs = model(**accepted_inputs(model, batch))
        values = dict(zip(names, hooks.features, strict=True))
        layers, attention = [
            [without_appended(values[name], batch) for name in own] for own in (self.module_names, self.attention)
        ]
        maps = [values[name] for name in self.maps]
        if maps and maps[-1].ndim == 4:  # what enters the classifier is a map itself
            maps[-1] = maps[-1].mean((2, 3))
        logits = read_logits(outputs, self.heads, batch, to_store)
        if is_paired(batch) and pooling.by_token:
            layers = align_features(layers, batch)
            batch = teacher_view(batch)
        is_text = "pixel_values" not in batch
        return outputs, Representation(
            logits=logits,
            features=pooling(layers, batch) if layers else (),
            mask=token_mask(teacher_view(batch)),
            attention=Pooling("all_tokens")(attention, batch) if attention else (),
            maps=tuple(maps),
            samples=pooling.samples(batch) if layers and is_text else None,
        )


def _output(module: str, pooling: Pooling) -> str:
    """The name of a folder: ``bert.encoder.layer.3@tokens-32``."""
    return f"{module}@{pooling.spec}".replace(":", "-")


class ForwardHooks:
    """Reads the outputs of named modules while the block runs.

    A name may end in ``:input`` to read the module's first input instead: ``bert.encoder.layer.0:input`` is the
    embedding output of a BERT.

    Args:
        model: any module.
        names: of its modules.
        stop: leave the block when all of them have been read, without running the rest of the model.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with ForwardHooks(net, ["0", "0:input"]) as hooks:
        ...     _ = net(torch.zeros(4, 2))
        >>> [tuple(x.shape) for x in hooks.features]
        [(4, 3), (4, 2)]
    """

    def __init__(self, model: nn.Module, names: Sequence[str], stop: bool = False):
        self.names, self.stop = tuple(names), stop
        self._modules = {name: _module(model, name.removesuffix(":input")) for name in names}
        self._values: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The values, in the order of the names; raises :class:`UserError` where a module was not called."""
        for name in self.names:
            if name not in self._values:
                raise UserError(f"{name} was not read: the model does not call it in a way that hooks see; {UNREAD}")
            if not isinstance(self._values[name], Tensor):
                kind = type(self._values[name]).__name__
                raise UserError(f"{name} gives a {kind}: expected a tensor first; {UNREAD}")
        return tuple(self._values[name] for name in self.names)

    def __enter__(self) -> "ForwardHooks":
        self._values = {}
        for name, module in self._modules.items():
            if name.endswith(":input"):
                hook = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            else:
                hook = module.register_forward_hook(self._hook(name))
            self._hooks.enter_context(hook)
        return self

    def __exit__(self, *error: Any) -> bool:
        self._hooks.close()
        return isinstance(error[1], _AllRead)

    def _hook(self, name: str) -> Any:
        def keep(value: Tensor) -> None:
            self._values[name] = value
            if self.stop and len(self._values) == len(self._modules):
                raise _AllRead

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            keep(output if isinstance(output, Tensor) else output[0])

        def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            keep(value.clone() if getattr(module, "inplace", False) else value)

        return keep_input if name.endswith(":input") else keep_output


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"no module {name!r} in {type(model).__name__}: expected a name of named_modules()") from None


class _AllRead(Exception):
    """Ends a forward whose remainder is not needed."""


def read_logits(
    outputs: Any, heads: Sequence[str], batch: Mapping[str, Tensor], to_store: bool = False
) -> dict[str, Tensor]:
    """The logits of each head, where padding never counts.

    Padding is pushed out of the softmax of a span head; where teacher and student have tokenizers of their own, its
    distribution is moved to the teacher's tokens. A head with classes for each token keeps its real tokens alone, as
    nobody labels special ones: (batch, length, classes) become (real tokens, classes). With tokenizers of their own, it
    keeps the first token of each word, but ``to_store``.
    """
    mask = token_mask(batch)
    logits = {head: outputs[head] for head in heads}
    if mask is None:
        return {head: value.flatten(0, 1) if value.ndim == 3 else value for head, value in logits.items()}
    for head, value in logits.items():
        if head in SPAN_HEADS:
            logits[head] = value.float().masked_fill(~mask, PADDING_LOGIT)
        elif value.ndim == 3:
            at_words = FIRST_TOKENS in batch and not to_store
            logits[head] = value[batch[FIRST_TOKENS].bool() if at_words else real_tokens(batch)]
    if is_paired(batch) and (spans := {head: logits[head] for head in logits if head in SPAN_HEADS}):
        logits |= align_spans(spans, batch, PADDING_LOGIT)
    return logits


def without_appended(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cut the tokens that a model appended to fill its windows of attention, as Longformer does."""
    return x[:, : batch["input_ids"].shape[1]] if "input_ids" in batch and x.ndim == 3 else x


def accepted_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of ``batch`` that ``model.forward`` names; another model may need the rest."""
    names = input_names(model)
    return {key: value for key, value in batch.items() if key in names}
