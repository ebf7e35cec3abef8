"""Where a student comes from: the models behind it, their licences, and names that may be told to others."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PretrainedConfig, PreTrainedModel

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")  # metadata of a card
UNREADABLE = (OSError, ValueError, yaml.YAMLError)  # of a card or config


def sources_of_models(student: PreTrainedModel, teacher: PreTrainedModel | None) -> dict[str, str]:
    """:func:`sources_of`, by what two models tell of themselves."""
    found = {} if teacher is None else {"teacher": teacher.name_or_path or teacher.config.model_type}
    start = student.name_or_path
    return found if start in ("", *found.values()) else {**found, "started from": start}


def public(value: Any) -> Any:
    """JSON values without the machine's own part of paths: of a file or folder the name stays."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return Path(value).absolute().name if isinstance(value, str) and lies_here(value) else value


def lies_here(name: str) -> bool:
    """Whether a name is a path, of something that is there or of this machine in any case."""
    with suppress(OSError):  # a name that is too long for one
        return bool(name) and (Path(name).is_absolute() or Path(name).exists())
    return False


def is_hub_id(name: str) -> bool:
    """Whether a name is a ``namespace/name`` of the Hub and nothing that lies here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not lies_here(name)


def licence_of(source: str) -> dict[str, str]:
    """The licence that the card of a model states, or else its config, as metadata of a card; empty where none does."""
    card, stated = Path(source) / CARD, {}
    if not (lies_here(source) or is_hub_id(source)):
        return {}
    if card.is_file() or is_hub_id(source):
        with suppress(*UNREADABLE):  # no card there, out of reach, or none that can be read
            stated = ModelCard.load(card if card.is_file() else source, ignore_metadata_errors=True).data.to_dict()
    if "license" not in stated:
        with suppress(*UNREADABLE):
            config, _ = PretrainedConfig.get_config_dict(source)
            stated = {"license": config.get("license") or (config.get("pretrained_cfg") or {}).get("license")}
    return {key: stated[key] for key in LICENCE if isinstance(stated.get(key), str)}
