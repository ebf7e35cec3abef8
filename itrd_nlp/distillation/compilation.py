"""Compiling the layers of a student, which leaves hooks and losses as they are."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.feature_extractor import accepted_inputs
from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.utils.errors import one_line

logger = logging.getLogger(__name__)


def compile_layers(model: PreTrainedModel, batch: Mapping[str, Tensor], backend: str | None, mode: str | None) -> bool:
    """Compile each layer of an encoder, for batches of any length, and try them; return whether they are compiled.

    Hooks and losses stay as they are. Where the machine cannot, a warning says so, and the model stays as it was.
    """
    layers, training = find_layers(model)[1], model.training
    if _is_compiled(layers[0]):
        return True
    model.train()
    try:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend or "inductor", mode=mode)
        sum(x.sum() for x in model(**accepted_inputs(model, batch)).values() if x.requires_grad).backward()
    except Exception as error:  # a compiler may raise anything
        for layer in layers:
            vars(layer).pop("forward", None)
        logger.warning(f"[compile] not used: {one_line(error)}")
        return False
    finally:
        model.train(training)
        model.zero_grad()
    return True


def uncompile_layers(model: PreTrainedModel) -> None:
    """Give the layers their own forward back: a copy of the model would run the compiled layers of the original."""
    for module in filter(_is_compiled, model.modules()):
        del module.forward


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
