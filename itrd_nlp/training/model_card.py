"""The model card of a student's folder: its metadata, and the values that the template ``model_card.md`` shows."""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PretrainedConfig, PreTrainedModel

from itrd_nlp.distillation.pooling import sentence_pooling
from itrd_nlp.losses import LOSSES
from itrd_nlp.models.classes import ending_of, task_of, temperature_of
from itrd_nlp.models.projection import projected_width
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record, calibration_table, run_table
from itrd_nlp.utils.hashing import json_values
from itrd_nlp.utils.io import make_folder, write_atomically
from itrd_nlp.utils.modeling import input_names
from itrd_nlp.utils.tables import metric_title

logger = logging.getLogger(__name__)

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
MARK = "<!-- made by itrd_nlp, which leaves this file alone once it was changed; sha256 of what stands above: "
MACHINE_ARGUMENTS = {"use_cpu", "deepspeed"}  # which no recipe has
LICENCE = ("license", "license_name", "license_link")  # metadata of a card
CARD_ERRORS = (OSError, ValueError, yaml.YAMLError)  # of a card or config
OUTPUTS = "outputs in the training data"  # what a card calls a teacher that no model was loaded of
HUB_TASKS = {  # task -> the Hub's name of it
    "squad": "question-answering",
    **dict.fromkeys(("classification", "multilabel", "regression"), "text-classification"),
    "reranking": "text-ranking",
    "tagging": "token-classification",
    "images": "image-classification",
    "embedding": "feature-extraction",
}


def write_card(
    folder: Path,
    model: PreTrainedModel,
    record: Record,
    *,
    repo: str | None = None,
    sources: Mapping[str, str],
    metadata: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write ``README.md`` into a student's folder, unless somebody has changed the one that is there.

    A card ends with the SHA-256 of its text: a card whose text has another, or that has none, is somebody's own.

    Args:
        model: the student.
        record: what is known of its training; what it lacks, the card lacks.
        repo: the Hub id that the model gets; by default the card's code loads it by the folder's name.
        sources: role -> folder or Hub id of the models that it comes from, see ``experiments.measure``.
        metadata: replaces what is found, e.g. ``{"license": "mit"}``; ``tags`` are added.
        defaults: of the arguments of a run that are not those of :class:`ITRDArguments`.
    """
    if _own_text(folder / CARD) is not None:
        _write(folder / CARD, card_text(model, record, repo or folder.name, sources, metadata or {}, defaults))


def add_note(folder: Path, title: str, note: str) -> None:
    """Add a section after the results to the card that :func:`write_card` wrote, unless somebody has changed it."""
    if text := _own_text(folder / CARD):
        before, heading, after = text.partition("\n## How to load")
        _write(folder / CARD, f"{before}\n## {title}\n\n{note}{heading}{after}")


def is_own(path: Path) -> bool:
    """Whether a card is the package's own, or missing; a warning says where somebody has written or changed it."""
    return _own_text(path) is not None


def _own_text(path: Path) -> str | None:
    """The text of the package's own card, empty where there is none; None for one that somebody has written."""
    if not path.is_file():
        return ""
    text, mark, end = path.read_text(encoding="utf-8", errors="replace").rpartition(MARK)
    if mark and mark + end == _mark(text):
        return text
    logger.warning(f"[card] {path} was written or changed by hand: left as it is; delete it for a new one")
    return None


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    write_atomically(path, (text + _mark(text)).encode())


def card_text(
    model: PreTrainedModel,
    record: Record,
    location: str,
    sources: Mapping[str, str],
    metadata: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """The text of a card, metadata included; see :func:`write_card`."""
    recipe = Path(record.recipe).stem if is_local(record.recipe) else record.recipe
    record = dataclasses.replace(record, recipe=recipe, arguments=file_names_only(record.arguments))
    on_hub = is_hub_id(location)
    name = (location if on_hub else recipe).rpartition("/")[-1]
    licences = {file_names_only(source): licence_of(source) for source in sources.values()}
    data = _metadata(model, record, name, sources, licences)
    data |= {**metadata, "tags": [*data["tags"], *metadata.get("tags", [])]}
    papers = [LOSSES[loss].paper for loss in record.arguments["losses"] if loss in LOSSES and loss != "itrd"]
    card = ModelCard.from_template(
        ModelCardData(**data),
        template_path=str(TEMPLATE),
        **_loading(model),
        name=name,
        location=location,
        on_hub=on_hub,
        record=record,
        links={role: _link(source) for role, source in sources.items()},
        licences=licences,
        version=version("itrd_nlp"),
        results=run_table(record).markdown() if record.metrics else "",
        calibration=calibration_table(record).markdown() if record.calibration else "",
        data=_data_names(record),
        arguments=yaml.safe_dump(changed_arguments(record, defaults or {}), sort_keys=False, allow_unicode=True),
        papers=list(filter(None, papers)),
    )
    return f"{card}\n\n"


def _metadata(
    model: PreTrainedModel,
    record: Record,
    name: str,
    sources: Mapping[str, str],
    licences: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The fields of ModelCardData that are known."""
    tag, dataset, scores = _loading(model)["tag"], _hub_dataset(record), record.metrics.get("student", {})
    hub_dataset = dataset if dataset and is_hub_id(dataset) else None
    own_file = record.arguments.get("validation_file")
    scored_on = None if own_file else hub_dataset
    bases = [source for source in sources.values() if is_hub_id(source)]
    data: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["itrd", *(["distillation"] if record.arguments["losses"] else [])],
        "pipeline_tag": tag,
        "base_model": bases[0] if len(bases) == 1 else bases or None,
        "datasets": [hub_dataset] if hub_dataset else None,
    }
    if licences and all(licences.values()) and len({tuple(terms.items()) for terms in licences.values()}) == 1:
        data |= next(iter(licences.values()))
    if tag and scores:
        data["metrics"], data["model_name"] = list(record.metric_names), name
        data["eval_results"] = [
            EvalResult(
                task_type=tag,
                dataset_type=scored_on or "unknown",
                dataset_name=own_file or dataset or _data_names(record)[-1],
                dataset_config=record.arguments.get("dataset_config") if scored_on else None,
                metric_type=metric,
                metric_name=metric_title(metric),
                metric_value=round(float(scores[metric]), 4),
            )
            for metric in record.metric_names
            if metric in scores
        ]
    return data


def _loading(model: PreTrainedModel) -> dict[str, Any]:
    """What the template needs to load and call a model; ``tag`` is None where it shows no code."""
    config, architecture = model.config.to_dict(), type(model).__name__
    head = re.sub("Model$|Simple$|WithTeacher$", "", ending_of(architecture))
    return {
        "architecture": architecture,
        "tag": HUB_TASKS.get(str(task_of(model.config, architecture))),
        "auto": f"AutoModel{head}",
        "segments": "token_type_ids" in input_names(model),
        "problem": config.get("problem_type") or ("regression" if model.config.num_labels == 1 else None),
        "width": projected_width(model),
        "first_token": sentence_pooling(model.config).kind == "cls",
        "temperature": temperature_of(model.config) is not None,
        "own_network": str(config.get("architecture", "")).startswith("cifar_"),
    }


def _hub_dataset(record: Record) -> str | None:
    """The named data set, unless files replace both its splits."""
    replaced = record.arguments.get("train_file") and record.arguments.get("validation_file")
    return None if replaced else record.arguments.get("dataset")


def _data_names(record: Record) -> list[str]:
    """What the data is called, the validation data last."""
    names = [_hub_dataset(record), *(record.arguments.get(key) for key in ("train_file", "validation_file"))]
    unnamed = f"task {record.arguments['task']}" if "task" in record.arguments else "unknown"
    return [name for name in names if name] or [unnamed]


def changed_arguments(record: Record, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a record that differ from the defaults, as a recipe; bf16 always, as machines differ.

    ``defaults`` are those of the arguments that are not :class:`ITRDArguments`.
    """
    arguments = dict(record.arguments)
    cache = arguments.pop("teacher_cache", None)  # off, or the precision of the cached outputs
    defaults = json_values({**defaults, **defaults_of(ITRDArguments)})
    names = [name for name in arguments if name in defaults and name not in MACHINE_ARGUMENTS]
    changes = {
        name: arguments[name] for name in names if name == "bf16" or _set(arguments[name]) != _set(defaults[name])
    }
    if cache == "off":
        changes["teacher_cache"] = "off"
    elif cache not in (None, defaults["teacher_cache_dtype"]):
        changes["teacher_cache_dtype"] = cache
    return changes


def _set(value: Any) -> Any:
    """A value; None for those that mean the same: arguments turn None into False, {} or []."""
    return None if value is False or value in ({}, []) else value


def licence_of(source: str) -> dict[str, str]:
    """The licence in a model's card, or else in its config, as metadata of a card; empty where neither has one."""
    local, data = is_local(source), {}
    if not (local or is_hub_id(source)):
        return {}
    with suppress(*CARD_ERRORS):
        data = ModelCard.load(Path(source) / CARD if local else source, ignore_metadata_errors=True).data.to_dict()
    if "license" not in data:
        with suppress(*CARD_ERRORS):
            config, _ = PretrainedConfig.get_config_dict(source)
            data = {"license": config.get("license") or (config.get("pretrained_cfg") or {}).get("license")}
    return {key: data[key] for key in LICENCE if isinstance(data.get(key), str)}


def file_names_only(value: Any) -> Any:
    """JSON values with paths cut to the name of their file or folder: the rest is private to the machine."""
    if isinstance(value, dict):
        return {key: file_names_only(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [file_names_only(inner) for inner in value]
    return Path(value).absolute().name if isinstance(value, str) and is_local(value) else value


def _link(source: str) -> str:
    return f"[{source}](https://huggingface.co/{source})" if is_hub_id(source) else f"`{file_names_only(source)}`"


def is_local(name: str) -> bool:
    """Whether a name is an absolute path, or that of an existing file or folder."""
    with suppress(OSError):  # a name that is too long for a path
        return bool(name) and (Path(name).is_absolute() or Path(name).exists())
    return False


def is_hub_id(name: str) -> bool:
    """Whether a name is a ``namespace/name`` of the Hub, and no file or folder here."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name and not is_local(name)
    return False


def _mark(text: str) -> str:
    return f"{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"
