"""Where an image classifier's features are read."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from itrd_nlp.utils.errors import UserError


class Stages(NamedTuple):
    """Names for :class:`itrd_nlp.distillation.features.ForwardHooks`."""

    outputs: list[str]  # whole maps, from the image on
    preact: list[str]  # the same before their activation, where the network says where that is


def classifier_input(model: PreTrainedModel) -> str:
    """The module of what enters an image classifier's classifier.

    Raises:
        UserError: none for the labels, or several.
    """
    if model.base_model_prefix == "timm_model":
        said = getattr(model.timm_model, "feature_info", None) or [{}]
        if "pooled" in said[-1]:
            return f"timm_model.{said[-1]['pooled']}"
        found = model.timm_model.get_classifier()
        wanted = found if isinstance(found, tuple) else (found,)
        heads = [name for name, module in model.named_modules() if any(module is head for head in wanted)]
    else:
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        fitting = [name for name, module in linear.items() if module.out_features == model.config.num_labels]
        heads = [name for name in fitting if not name.startswith(f"{model.base_model_prefix}.")]
    if len(heads) != 1:
        raise UserError(
            f"{_name(model)} has {len(heads)} classifiers for {model.config.num_labels} classes "
            f"({', '.join(heads) or 'none'}): expected one"
        )
    return f"{heads[0]}:input"


def find_stages(model: PreTrainedModel) -> Stages:
    """Finds the stages of an image classifier.

    timm's models say so themselves (``feature_info``); of transformers' models the outermost list of modules is taken:
    the stages of a ResNet or ConvNeXt, the layers of a ViT.

    Raises:
        UserError: no such list, or several; maps with their channels last.
    """
    if model.base_model_prefix != "timm_model":
        lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
        outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
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
    said = [info for info in getattr(model.timm_model, "feature_info", None) or [] if info["module"] in modules]
    leaves = [info for info in said if "preact" not in info and not list(modules[info["module"]].children())]
    infos = [info for info in said if info not in leaves] or said  # beside stages, a leaf is an activation before them
    if not infos:
        raise UserError(f"{_name(model)} does not say what its stages are: expected layer_map last, or another model")
    outputs = [f"timm_model.{info['module']}" for info in infos]
    return Stages(outputs, [f"timm_model.{info.get('preact', info['module'])}" for info in infos])


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "architecture", None) or type(model).__name__)
