"""Heads of two classes as one score."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel


def second_logit(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel:
    """The same model with one output: the logit of the second of its two classes.

    Args:
        model: with a head of two classes.
        fields: of the new config; those of a head with one output among them.

    Returns:
        A new model, in eval mode.
    """
    config = copy.deepcopy(model.config)
    config.update(dict(fields))
    single = type(model)._from_config(config, dtype=model.dtype)
    shapes = {name: weight.shape for name, weight in single.state_dict().items()}
    weights = {
        name: weight if weight.shape == shapes[name] else weight[1:] for name, weight in model.state_dict().items()
    }
    single.load_state_dict(weights)
    single.name_or_path = single.config.name_or_path = model.name_or_path
    return single.eval()
