"""Which modules of a model hold its layers and attention projections, as names for forward hooks."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.stages import classifier_input, find_stages, module_lists, outermost
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
    lists = module_lists(model)
    layers = outermost([n for n, m in lists.items() if len(m) == count and len({type(layer) for layer in m}) == 1])
    if len(layers) != 1:
        lengths = ", ".join(f"{name} ({len(lists[name])})" for name in outermost(lists)) or "none"
        raise UserError(
            f"{type(model).__name__} has {len(layers)} lists of config.num_hidden_layers={count} like layers, "
            f"expected 1 (lists and lengths: {lengths}); use a BERT-like encoder, or compare logits alone (losses kd)"
        )
    return layers[0], lists[layers[0]]


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
