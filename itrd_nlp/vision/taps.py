"""Where an image classifier's features are read."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from itrd_nlp.errors import UserError


class ImageTaps(NamedTuple):
    """Names for :class:`itrd_nlp.representation.Taps`."""

    stages: list[str]  # of the whole maps, from the image on
    preact: list[str]  # the same before their activation, where the network says where that is
    pooled: str  # what enters the classifier


def _is_stem(model: PreTrainedModel, info: dict[str, Any]) -> bool:
    """Whether timm's entry is an activation before the stages."""
    return not list(model.timm_model.get_submodule(info["module"]).children())


def image_taps(model: PreTrainedModel) -> ImageTaps:
    """Finds the stages of an image classifier, and its classifier.

    timm's models say so themselves (``feature_info``); of transformers' models the outermost list of like modules is
    taken: the stages of a ResNet or ConvNeXt, the layers of a ViT.

    Raises:
        UserError: no linear classifier for the labels, or no such list.
    """
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    heads = [name for name in linear if model.get_submodule(name).out_features == model.config.num_labels]
    if not heads:
        raise UserError(f"{type(model).__name__} has no linear classifier for {model.config.num_labels} classes")
    if model.base_model_prefix == "timm_model":
        if getattr(model.timm_model, "output_fmt", "NCHW") != "NCHW":
            raise UserError(
                f"{model.config.architecture} has its channels last: losses read its layers by channels first"
            )
        infos = [info for info in model.timm_model.feature_info if "preact" in info or not _is_stem(model, info)]
        stages = [f"timm_model.{info['module']}" for info in infos]
        preact = [f"timm_model.{info.get('preact', info['module'])}" for info in infos]
        if "pooled" in infos[-1]:
            return ImageTaps(stages, preact, f"timm_model.{infos[-1]['pooled']}")
    else:
        lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        alike = [name for name, m in lists.items() if len({type(layer) for layer in m}) == 1]
        outermost = [name for name in alike if not any(name.startswith(f"{other}.") for other in alike)]
        stages = preact = [f"{outermost[0]}.{i}" for i in range(len(lists[outermost[0]]))] if outermost else []
    if not stages:
        raise UserError(f"{type(model).__name__} has no list of stages or layers: expected a model of timm or a ViT")
    return ImageTaps(stages, preact, f"{heads[-1]}:input")
