"""New models of transformers, from a config."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from itrd_nlp.utils.errors import UserError, first_line, nearest


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
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{source}: expected the config of a new {what} with its model_type, e.g. {example} ({first_line(error)})"
        ) from None


def check_fields(fields: dict[str, Any], config: Any, model: str) -> None:
    """Raise :class:`UserError` for a field that a config does not have."""
    known = {*config.to_dict(), *config.attribute_map}
    for key in fields:
        if key not in known:
            raise UserError(f"the config of {model} has no field {key!r}{nearest(key, known)}")
