"""Which modules of an image classifier hold its stages and what enters its classifier, as names for forward hooks."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import reads_images


class Stages(NamedTuple):
    """Names of an image classifier's stages."""

    outputs: list[str]  # (n, d, height, width) maps, in the order in which the image passes them
    preact: list[str]  # the same before their activation, where the network says where that is


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
        lists = module_lists(model)
        holders = outermost(lists)
        if len(holders) != 1:
            raise UserError(
                f"{_name(model)} has {len(holders)} lists of stages or layers ({', '.join(holders) or 'none'}): "
                "expected one; its last layer alone can be read (layer_map last)"
            )
        names = [f"{holders[0]}.{i}" for i in range(len(lists[holders[0]]))]
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
    parent, dot, own = head.rpartition(".")
    for (name, module), (after, _) in itertools.pairwise(model.get_submodule(parent).named_children()):
        if after == own and isinstance(module, nn.Dropout):
            return f"{parent}{dot}{name}"
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


def module_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules in a model, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def outermost(names: Sequence[str] | dict[str, nn.ModuleList]) -> list[str]:
    """The names of modules that lie inside no other of them."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
