"""Which modules of a model hold its layers, stages and attention projections, as names for forward hooks."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import reads_images

LayerMap = str | Sequence[Sequence[int]]

PROJECTIONS = (  # names of the queries, keys and values in an attention module
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, RoFormer, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),  # MPNet, T5
)


def layer_pairs(layer_map: LayerMap, teacher_layers: int, student_layers: int) -> list[list[int]]:
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
    if not isinstance(layer_map, list | tuple) or not layer_map:
        raise UserError(f"layer_map {layer_map!r}: {expected}")
    counts = (teacher_layers, student_layers)
    for pair in layer_map:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not (is_pair and all(type(n) is int and 0 <= n <= count for n, count in zip(pair, counts, strict=True))):
            raise UserError(f"layer_map has the pair {pair!r}: {expected}")
    return [list(pair) for pair in layer_map]


def matched_layers(teacher: PreTrainedModel, student: PreTrainedModel, layer_map: LayerMap) -> list[list[str]]:
    """Modules whose outputs are the matched layers: the teacher's, then the student's."""
    if layer_map == "last":
        return [[last_module(teacher)], [last_module(student)]]
    names = [layer_modules(model) for model in (teacher, student)]
    pairs = layer_pairs(layer_map, *[len(names) - 1 for names in names])
    return [[names[i][pair[i]] for pair in pairs] for i in range(2)]


def matched_attention(teacher: PreTrainedModel, student: PreTrainedModel, layer_map: LayerMap) -> list[list[str]]:
    """Queries, keys and values of the matched layers: the teacher's, then the student's."""
    encoders = [find_layers(model) for model in (teacher, student)]
    pairs = layer_pairs(layer_map, *[len(layers) for _, layers in encoders])
    return [[name for pair in pairs for name in attention_modules(*encoders[i], pair[i])] for i in range(2)]


def matched_maps(teacher: PreTrainedModel, student: PreTrainedModel) -> list[list[str]]:
    """All stages and the input of the classifier: the teacher's, then the student's."""
    if not (reads_images(teacher) and reads_images(student)):
        raise UserError("the losses compare maps of images: expected image classifiers, not encoders of text")
    teacher_stages, student_stages = find_stages(teacher), find_stages(student)
    if len(student_stages.outputs) != len(teacher_stages.outputs):
        raise UserError(
            f"the teacher has {len(teacher_stages.outputs)} stages, the student {len(student_stages.outputs)}: "
            "expected equally many to compare their maps"
        )
    return [[*teacher_stages.preact, classifier_input(teacher)], [*student_stages.outputs, classifier_input(student)]]


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the encoder's layers: the outermost ``ModuleList`` of ``config.num_hidden_layers`` modules of one class.

    Args:
        model: a transformers model, with or without a head.

    Returns:
        The dotted name of the list inside ``model``, and the list.

    Raises:
        UserError: no list qualifies, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    lists = _module_lists(model)
    layers = _outermost([n for n, m in lists.items() if len(m) == count and len({type(layer) for layer in m}) == 1])
    if len(layers) != 1:
        lengths = ", ".join(f"{name} ({len(lists[name])})" for name in _outermost(lists)) or "none"
        raise UserError(
            f"{type(model).__name__} has {len(layers)} lists of config.num_hidden_layers={count} like layers, "
            f"expected 1 (lists and lengths: {lengths}); use a BERT-like encoder, or compare logits alone (losses kd)"
        )
    return layers[0], lists[layers[0]]


def _module_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _outermost(names: Sequence[str] | dict[str, nn.ModuleList]) -> list[str]:
    """The names of modules that lie inside no other of them."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def layer_modules(model: nn.Module) -> list[str]:
    """The modules of a model's layers, from layer 0: the embeddings of a text, or the input of the first stage.

    The last layer of an image classifier is what enters its classifier; that of an encoder includes the norm that
    follows all layers, as ModernBERT's does, so that it is the last hidden state.

    Raises:
        UserError: as :func:`find_layers`.
    """
    if reads_images(model):
        stages = find_stages(model).outputs
        return [f"{stages[0]}:input", *stages, classifier_input(model)]
    name, layers = find_layers(model)
    outputs = [f"{name}.{i}" for i in range(len(layers))]
    return [f"{name}.0:input", *outputs[:-1], _final_norm(model, name) or outputs[-1]]


def _final_norm(model: nn.Module, layers: str) -> str | None:
    """The norm between an encoder's last layer and its last hidden state; None where there is none.

    It is called final, or is registered after the list of layers or after a module that holds the list. What this
    gets wrong, :func:`itrd_nlp.distillation.probe.check_features` refuses.
    """
    if hasattr(model.config, "norm_rel_ebd"):  # DeBERTa's norm after the list is that of its relative embeddings
        return None
    base, path, final = getattr(model, "base_model", model), layers, None
    while path and model.get_submodule(path) is not base:
        path, _, inner = path.rpartition(".")  # from the list to what holds it, up to the encoder
        children = dict(model.get_submodule(path).named_children())
        norms = [name for name, child in children.items() if is_norm(child)]
        later = [*children][[*children].index(inner) + 1 :]
        ends = [n for n in norms if n.startswith("final") or (n in later and not n.endswith("embedding"))]
        final = f"{path}.{ends[-1]}".removeprefix(".") if ends else final
    return final


def is_norm(module: nn.Module) -> bool:
    """Whether a module's class is called a norm, as each architecture has its own: LayerNorm, RMSNorm, LayerNorm1P."""
    return type(module).__name__.endswith(("Norm", "Norm1P"))


def last_module(model: nn.Module) -> str:
    """The last of :func:`layer_modules`, also of an image classifier whose stages cannot be read."""
    return classifier_input(model) if reads_images(model) else layer_modules(model)[-1]


def attention_modules(layers_name: str, layers: nn.ModuleList, layer: int) -> list[str]:
    """The queries, keys and values of layer ``layer`` (from 1) of the layer list called ``layers_name``.

    Raises:
        UserError: the embedding output, which has no attention, or a layer whose projections have unknown names.
    """
    if layer == 0:
        raise UserError("layer_map pairs layer 0, the embedding output, which has no attention: expected layers from 1")
    linear = [name for name, module in layers[layer - 1].named_modules() if isinstance(module, nn.Linear)]
    for kinds in PROJECTIONS:
        candidates = [[name for name in linear if name.rpartition(".")[2] == kind] for kind in kinds]
        if all(len(names) == 1 for names in candidates):
            return [f"{layers_name}.{layer - 1}.{name}" for (name,) in candidates]
    raise UserError(
        f"{type(layers[layer - 1]).__name__} has no separate projections for queries, keys and values (its linear "
        f"modules: {', '.join(linear)}): expected names as in BERT, DistilBERT or DeBERTa"
    )


class Stages(NamedTuple):
    """Names of an image classifier's stages."""

    outputs: list[str]  # (n, d, height, width) maps, in the order in which the image passes them
    preact: list[str]  # the same before their activation, where the network says where that is


def check_widths(model: PreTrainedModel, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raise :class:`UserError` where a stage of a timm model does not give the channels that timm says it has.

    Args:
        names: of the modules that were read.
        tensors: what was read, with channels or features second.
    """
    infos = getattr(getattr(model, "timm_model", None), "feature_info", None) or []
    widths = {f"timm_model.{info.get(key)}": info["num_chs"] for info in infos for key in ("module", "preact")}
    for name, x in zip(names, tensors, strict=True):
        if widths.get(name, x.shape[1]) != x.shape[1]:  # channels last, as VOLO's; or several tensors, as HRNet's
            raise UserError(
                f"{_name(model)} gives {x.shape[1]} channels at {name}, expected {widths[name]}: its stages cannot be "
                "read; its last layer alone can (layer_map last)"
            )


def find_stages(model: PreTrainedModel) -> Stages:
    """Find the stages of an image classifier.

    A timm model lists its own (``feature_info``); in a transformers model they are the outermost list of modules: the
    stages of a ResNet or ConvNeXt, the layers of a ViT.

    Raises:
        UserError: no such list, or several; maps with their channels last.
    """
    if model.base_model_prefix != "timm_model":
        lists = _module_lists(model)
        outermost = _outermost(lists)
        if len(outermost) != 1:
            raise UserError(
                f"{_name(model)} has {len(outermost)} lists of stages or layers ({', '.join(outermost) or 'none'}): "
                "expected one; its last layer alone can be read (layer_map last)"
            )
        names = [f"{outermost[0]}.{i}" for i in range(len(lists[outermost[0]]))]
        return Stages(names, names)
    if getattr(model.timm_model, "output_fmt", "NCHW") != "NCHW":
        raise UserError(
            f"{_name(model)} has its channels last, stages are read by channels first: "
            "its last layer alone can be read (layer_map last)"
        )
    modules = dict(model.timm_model.named_modules())
    listed = [info for info in getattr(model.timm_model, "feature_info", None) or [] if info["module"] in modules]
    leaves = [info for info in listed if "preact" not in info and not list(modules[info["module"]].children())]
    # a leaf before stages is an activation or a pooling; behind them it is a stage, as RepVGG's final_conv
    last = max((i for i, info in enumerate(listed) if info not in leaves), default=0)
    infos = [info for i, info in enumerate(listed) if i >= last or info not in leaves]
    if not infos:
        raise UserError(f"{_name(model)} does not say what its stages are: expected layer_map last, or another model")
    outputs = [f"timm_model.{info['module']}" for info in infos]
    return Stages(outputs, [f"timm_model.{info.get('preact', info['module'])}" for info in infos])


def classifier_input(model: PreTrainedModel) -> str:
    """The hook of what enters an image classifier's classifier: its input, or the output of the pooling before it.

    Where a dropout feeds the classifier, as in MobileNet, it is what enters the dropout.

    Raises:
        UserError: no classifier for the labels, or several; or a dropout that is not a module, which hooks cannot see.
    """
    if model.base_model_prefix == "timm_model":
        infos = getattr(model.timm_model, "feature_info", None) or [{}]
        if "pooled" in infos[-1]:
            return f"timm_model.{infos[-1]['pooled']}"
        heads = timm_heads(model)
    else:
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        fitting = [name for name, module in linear.items() if module.out_features == model.config.num_labels]
        heads = [name for name in fitting if not name.startswith(f"{model.base_model_prefix}.")]
    if len(heads) != 1:
        raise UserError(
            f"{_name(model)} has {len(heads)} classifiers for {model.config.num_labels} classes "
            f"({', '.join(heads) or 'none'}): expected one"
        )
    return f"{_feeding_dropout(model, heads[0]) or heads[0]}:input"


def _feeding_dropout(model: PreTrainedModel, head: str) -> str | None:
    """The dropout whose output a classifier takes: its parent's module before it; None without one."""
    parent, _, own = head.rpartition(".")
    siblings = [name for name, _ in model.get_submodule(parent).named_children()]
    before = siblings[: siblings.index(own)][-1:]
    if before and isinstance(model.get_submodule(f"{parent}.{before[0]}".lstrip(".")), nn.Dropout):
        return f"{parent}.{before[0]}".lstrip(".")
    rate = getattr(getattr(model, "timm_model", None), "drop_rate", 0)
    if rate:
        raise UserError(
            f"{_name(model)} has drop_rate {rate} before its classifier, where losses read features: expected 0 in its "
            "model_args"
        )
    return None


def timm_heads(model: PreTrainedModel) -> list[str]:
    """The modules that a timm model calls its classifier; DeiT's distilled models have two.

    Of a whole head, as Sequencer's is, which pools first, its linear layer.
    """
    classifier = model.timm_model.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    layers = [getattr(head, "fc", head) for head in heads]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "architecture", None) or type(model).__name__)
