"""New models of transformers, from a config."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from itrd_nlp.utils.errors import UserError, first_line, nearest


def new_model(source: dict[str, Any], model_class: Any, what: str, example: str, **defaults: Any) -> PreTrainedModel:
    """A model of transformers with new weights.

    Args:
        source: its ``model_type`` and config fields.
        model_class: the AutoModelFor... that carries the head.
        what, example: what an error calls such a model, and a ``model_type`` that would do.
        defaults: config fields that ``source`` may change.

    Raises:
        UserError: a config that cannot be.
    """
    options = {**defaults, **source}
    kind = options.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind)
        _check_fields(options, config, f"a {kind} model")
        config = AutoConfig.for_model(kind, **options)
        config.architectures = config.architectures or []  # DeiT has two classifiers, chosen by this list, never None
        return model_class.from_config(config)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{source}: expected the config of a new {what} with its model_type, e.g. {example} ({first_line(error)})"
        ) from None


def _check_fields(fields: dict[str, Any], config: Any, place: str) -> None:
    known = {*config.to_dict(), *config.attribute_map}
    for key in fields:
        if key not in known:
            raise UserError(f"the config of {place} has no field {key!r}{nearest(key, known)}")
