"""What a loss may look at: hooks on named modules, and layer maps."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from itrd_nlp.distillation.pooling import real_tokens
from itrd_nlp.losses.base import SPAN_HEADS, Representation
from itrd_nlp.utils.errors import UserError

UNREAD = "features of this architecture cannot be read, compare its logits alone (losses kd)"


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
        modules = dict(model.named_modules())
        missing = [name for name in names if name.removesuffix(":input") not in modules]
        if missing:
            raise UserError(f"no module {missing[0]!r} in {type(model).__name__}: expected a name of named_modules()")
        self.names, self.stop = tuple(names), stop
        self._modules = {name: modules[name.removesuffix(":input")] for name in names}
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    @property
    def features(self) -> tuple[Tensor, ...]:
        """What was read, in the order of the names; raises :class:`UserError` where a module was not called."""
        for name in self.names:
            if name not in self._seen:
                raise UserError(f"{name} was not read: the model does not call it in a way that hooks see; {UNREAD}")
            if not isinstance(self._seen[name], Tensor):
                kind = type(self._seen[name]).__name__
                raise UserError(f"{name} gives a {kind}: expected a tensor first; {UNREAD}")
        return tuple(self._seen[name] for name in self.names)

    def __enter__(self) -> "ForwardHooks":
        self._seen = {}
        for name, module in self._modules.items():
            if name.endswith(":input"):
                handle = module.register_forward_pre_hook(self._reader(name), with_kwargs=True)
            else:
                handle = module.register_forward_hook(self._reader(name))
            self._handles.append(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return isinstance(error, _AllRead)

    def _reader(self, name: str) -> Any:
        def keep(value: Tensor) -> None:
            self._seen[name] = value
            if self.stop and len(self._seen) == len(self._modules):
                raise _AllRead

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            keep(output if isinstance(output, Tensor) else output[0])

        def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
            keep(args[0] if args else next(iter(kwargs.values())))

        return keep_input if name.endswith(":input") else keep_output


class _AllRead(Exception):
    """Ends a forward whose remainder nobody needs."""


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Finds the encoder's layers: the outermost `ModuleList` of `config.num_hidden_layers` modules of one class.

    Args:
        model: a transformers model, with or without a head.

    Returns:
        Dotted name of the list inside `model`, and the list.

    Raises:
        UserError: no list qualifies, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    fitting = [name for name, m in lists.items() if len(m) == count and len({type(layer) for layer in m}) == 1]
    outermost = [name for name in fitting if not any(name.startswith(f"{other}.") for other in fitting)]
    if len(outermost) != 1:
        tops = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        found = ", ".join(f"{name} ({len(lists[name])})" for name in tops) or "none"
        raise UserError(
            f"{type(model).__name__} has {len(outermost)} lists of config.num_hidden_layers={count} like layers, "
            f"expected 1 (lists and lengths: {found}); use a BERT-like encoder, or compare logits alone (losses kd)"
        )
    return outermost[0], lists[outermost[0]]


def layer_modules(model: nn.Module) -> list[str]:
    """The hooks of a model's layers, first that of layer 0: the embeddings of a text, or the first stage's input.

    The last layer of an image classifier is what enters its classifier.

    Raises:
        UserError: as :func:`find_layers`.
    """
    if _sees_images(model):
        from itrd_nlp.distillation.stages import classifier_input, find_stages

        stages = find_stages(model).outputs
        return [f"{stages[0]}:input", *stages, classifier_input(model)]
    name, layers = find_layers(model)
    return [module_of_layer(name, i) for i in range(len(layers) + 1)]


def last_module(model: nn.Module) -> str:
    """The last of :func:`layer_modules`, also of an image classifier whose stages cannot be read."""
    if _sees_images(model):
        from itrd_nlp.distillation.stages import classifier_input

        return classifier_input(model)
    return layer_modules(model)[-1]


def _sees_images(model: nn.Module) -> bool:
    return getattr(model, "main_input_name", "") == "pixel_values"


def layer_pairs(layer_map: str | Sequence[Sequence[int]], teacher_layers: int, student_layers: int) -> list[list[int]]:
    """Pairs of [teacher layer, student layer]; layers count from 1 and 0 is the embedding output.

    Args:
        layer_map: ``"last"``: the two last layers; ``"even"``: every student layer with the teacher layer at the same
            relative depth (the map of TextBrewer's T6 and T3); or the pairs themselves.
        teacher_layers, student_layers: how many layers each encoder has.

    Raises:
        UserError: an unknown map, or a layer that does not exist.

    Example:
        >>> layer_pairs("even", 12, 3)
        [[4, 1], [8, 2], [12, 3]]
    """
    if layer_map == "last":
        return [[teacher_layers, student_layers]]
    if layer_map == "even":
        return [[max(1, round(j * teacher_layers / student_layers)), j] for j in range(1, student_layers + 1)]
    expected = f'expected "last", "even" or pairs [teacher 0..{teacher_layers}, student 0..{student_layers}]'
    if isinstance(layer_map, str) or not layer_map:
        raise UserError(f"layer_map {layer_map!r}: {expected}")
    for pair in layer_map:
        inside = (
            not isinstance(pair, str)
            and len(pair) == 2
            and all(
                type(i) is int and 0 <= i <= most
                for i, most in zip(pair, (teacher_layers, student_layers), strict=True)
            )
        )
        if not inside:
            raise UserError(f"layer_map has the pair {pair!r}: {expected}")
    return [list(pair) for pair in layer_map]


def module_of_layer(layers_name: str, layer: int) -> str:
    """The module of layer ``layer`` (from 1; 0 is the embedding output) of the layer list called ``layers_name``."""
    return f"{layers_name}.{layer - 1}" if layer else f"{layers_name}.0:input"


PROJECTIONS = (  # what encoders call the queries, keys and values of an attention module
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, RoFormer, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
    ("q_proj", "k_proj", "v_proj"),
)


def attention_modules(layers_name: str, layers: nn.ModuleList, layer: int) -> list[str]:
    """The hooks of the queries, keys and values of layer ``layer`` (from 1) of the layer list called ``layers_name``.

    Raises:
        UserError: the embedding output, which has no attention, or a layer whose projections are not found.
    """
    if layer == 0:
        raise UserError("layer_map pairs layer 0, the embedding output, which has no attention: expected layers from 1")
    names = [name for name, module in layers[layer - 1].named_modules() if isinstance(module, nn.Linear)]
    for kinds in PROJECTIONS:
        found = [[name for name in names if name.rpartition(".")[2] == kind] for kind in kinds]
        if all(len(some) == 1 for some in found):
            return [f"{layers_name}.{layer - 1}.{name}" for (name,) in found]
    raise UserError(
        f"{type(layers[layer - 1]).__name__} has no separate projections for queries, keys and values (its linear "
        f"modules: {', '.join(names)}): expected names as in BERT, DistilBERT or DeBERTa"
    )


def represent(
    outputs: Any, heads: Sequence[str], features: tuple[Tensor, ...], batch: Mapping[str, Tensor]
) -> Representation:
    """Gather a model's logits and pooled features.

    Padding never counts: it is pushed out of the softmax of a span head, and left out of a head with classes for each
    token, as special tokens are, whose classes nobody learned: (batch, length, classes) become (real tokens, classes).
    """
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    logits = {head: outputs[head] for head in heads}
    if mask is not None:
        for head, value in logits.items():
            if head in SPAN_HEADS:
                logits[head] = value.float().masked_fill(~mask, -1e4)
            elif value.ndim == 3:
                logits[head] = value[real_tokens(batch)]
    return Representation(logits, features, mask)
