"""New models of transformers, from a config, or from a model and changes of its config."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.utils.errors import UserError, nearest, one_line
from itrd_nlp.utils.modeling import seeded

OPTIONS = ("init", "layers", "vocabulary")  # of a student, beside config fields


def new_model(source: dict[str, Any], model_class: Any, what: str, example: str, **defaults: Any) -> PreTrainedModel:
    """Make a model of transformers with new weights.

    Args:
        source: its ``model_type`` and config fields.
        model_class: the AutoModelFor... that carries the head.
        what, example: what an error calls such a model, and a ``model_type`` that would do.
        defaults: config fields that ``source`` may change.

    Raises:
        UserError: no such model type, an unknown field, or a value that does not fit.
    """
    options = {**defaults, **source}
    kind = options.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind)
        check_fields(options, config, f"a {kind} model")
        config = AutoConfig.for_model(kind, **options)
        config.architectures = config.architectures or []  # DeiT has two classifiers, chosen by this list, never None
        return model_class.from_config(config)
    except UserError:
        raise
    except (StrictDataclassError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{source}: expected the config of a new {what} with its model_type, e.g. {example} ({one_line(error)})"
        ) from None


def check_fields(fields: dict[str, Any], config: Any, model: str) -> None:
    """Raise :class:`UserError` for a field that a config does not have."""
    known = {*config.to_dict(), *config.attribute_map}
    for key in fields:
        if key not in known:
            raise UserError(f"the config of {model} has no field {key!r}{nearest(key, known)}")


def resized_model(source: PreTrainedModel, layers: Sequence[int], overrides: dict[str, Any], seed: int = 0) -> Any:
    """A new model of a model's class with some of its layers and other config fields; all its weights are new.

    Args:
        source: the model whose class, precision and config it takes.
        layers: zero-based indices of those that it keeps.
        overrides: config fields.
        seed: of the weights; torch's random state is left as it was.

    Raises:
        UserError: an override does not fit.
    """
    with seeded(seed):
        try:
            config = resized_config(source.config, layers, overrides)
            return type(source)._from_config(config, dtype=source.dtype)
        except UserError:
            raise
        except (StrictDataclassError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{overrides} does not fit {type(source).__name__}: {one_line(error)}; correct the value"
            ) from error


CALL_OPTIONS = ("output_hidden_states", "output_attentions", "return_dict")  # how a teacher was loaded, not what it is
ROTATIONS = {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"}  # ModernBERT's, before 5


def resized_config(config: PretrainedConfig, layers: Sequence[int], overrides: dict[str, Any]) -> PretrainedConfig:
    """A copy of a config for some of its layers, with the overrides applied.

    Lists with one entry per layer (ModernBERT's `layer_types`, Longformer's `attention_window`) keep the entries of
    these layers. Sizes that follow `hidden_size` (such as DeBERTa's `pooler_hidden_size`) follow its override.
    """
    renamed, fields, total = config.attribute_map, config.to_dict(), config.num_hidden_layers
    count_field = renamed.get("num_hidden_layers", "num_hidden_layers")
    known = ({*fields, *renamed, "num_labels"}) - {"dtype", "model_type", "transformers_version"}
    for name, value in overrides.items():
        if name in ("num_hidden_layers", count_field):
            raise UserError(f'{name}={value} cannot be overridden; choose layers instead, e.g. layers="even:{value}"')
        if name not in known:
            raise UserError(
                f"{name!r} is not a field of {type(config).__name__}{nearest(name, sorted({*known, *OPTIONS}))}"
            )
    for name, value in fields.items():
        by_layer = ("layer" in name or name == "attention_window") and isinstance(value, (list, tuple))
        if by_layer and len(value) == total and name not in overrides:
            fields[name] = [value[i] for i in layers]
        elif (name.endswith("_hidden_size") or name == "embedding_size") and value == config.hidden_size:
            fields[name] = overrides.get("hidden_size", value)
    if overrides.get("num_labels", config.num_labels) != config.num_labels:
        fields.update(id2label=None, label2id=None)
    if overrides.get("id2label") and "label2id" not in overrides:
        fields["label2id"] = {name: int(index) for index, name in overrides["id2label"].items()}
    elif overrides.get("label2id") and "id2label" not in overrides:
        fields["id2label"] = {int(index): name for name, index in overrides["label2id"].items()}
    for name in CALL_OPTIONS:
        fields.pop(name, None)
    fields.update({renamed.get(name, name): value for name, value in overrides.items()})
    fields[count_field] = len(layers)
    fields.pop(TEMPERATURE, None)  # was fitted to the weights of all layers
    if config.model_type == "modernbert" and (period := _period_of(fields["layer_types"])):
        fields["global_attn_every_n_layers"] = period
    changed = type(config).from_dict(fields)
    if config.model_type == "modernbert":
        for name, kind in ROTATIONS.items():
            setattr(changed, name, changed.rope_parameters[kind]["rope_theta"])
    changed._attn_implementation = config._attn_implementation
    width, heads = changed.hidden_size, getattr(changed, "num_attention_heads", 1)  # FNet has none
    if heads < 1 or width % heads:
        raise UserError(f"hidden_size={width} is not a multiple of num_attention_heads={heads}; override both to fit")
    return changed


def _period_of(layer_types: Sequence[str]) -> int | None:
    """The n of layers of which each n-th attends globally, as transformers 4 reads ModernBERT; None without one."""
    is_global = [kind == "full_attention" for kind in layer_types]
    periods = (n for n in range(1, len(is_global) + 1) if is_global == [i % n == 0 for i in range(len(is_global))])
    return next(periods, None)


def one_score(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel:
    """The same model with one output: the log-odds of the second of its two classes, the difference of its logits.

    Args:
        model: with a head of two classes.
        fields: of the new config; those of a head with one output among them.

    Returns:
        A new model, in eval mode.
    """
    config = copy.deepcopy(model.config)
    config.update(dict(fields))
    single = type(model)._from_config(config, dtype=model.dtype)
    own, weights = single.state_dict(), model.state_dict()
    single.load_state_dict({name: w if w.shape == own[name].shape else w[1:] - w[:1] for name, w in weights.items()})
    single.name_or_path = single.config.name_or_path = model.name_or_path
    return single.eval()
