"""The model card of a student's folder: its metadata, and the values that the template ``model_card.md`` shows."""

import dataclasses
import hashlib
import inspect
import json
import logging
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

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record, run_table
from itrd_nlp.utils.errors import writing
from itrd_nlp.utils.io import move
from itrd_nlp.utils.tables import SHORT

logger = logging.getLogger(__name__)

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
MARK = "<!-- made by itrd_nlp, which leaves this file alone once it was changed; sha256 of what stands above: "
OF_THE_MACHINE = {"use_cpu", "deepspeed"}  # arguments that no recipe has
LICENCE = ("license", "license_name", "license_link")  # metadata of a card
UNREADABLE = (OSError, ValueError, yaml.YAMLError)  # of a card or config
TASKS = {  # how the class of a model ends -> the Hub's name of its task
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}
PAPERS = {  # name of a loss -> its paper
    "itrd": "Miles, Lopez Rodriguez and Mikolajczyk: Information Theoretic Representation Distillation. BMVC 2022",
    "kd": "Hinton, Vinyals and Dean: Distilling the Knowledge in a Neural Network. 2015",
    "cosine": "Sanh et al.: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. 2019",
    "textbrewer": "Yang et al.: TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language "
    "Processing. ACL 2020",
    "crd": "Tian, Krishnan and Isola: Contrastive Representation Distillation. ICLR 2020",
    "wcord": "Chen et al.: Wasserstein Contrastive Representation Distillation. CVPR 2021",
    "minilmv2": "Wang et al.: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained "
    "Transformers. Findings of ACL 2021",
    "srd": "Miles and Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024",
    "vkd": "Miles, Elezi and Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections. CVPR 2024",
    "reviewkd": "Chen et al.: Distilling Knowledge via Knowledge Review. CVPR 2021",
}


def write_card(
    folder: Path,
    model: PreTrainedModel,
    record: Record,
    *,
    where: str | None = None,
    sources: Mapping[str, str],
    stated: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write ``README.md`` into a student's folder, unless somebody has changed the one that lies there.

    A card ends with the SHA-256 of its text: one whose text has another, or that has none, is somebody's own.

    Args:
        model: the student.
        record: what is known of its training; what it lacks, the card lacks.
        where: the Hub id that the model gets; by default the folder's name stands in the code.
        sources: role -> folder or Hub id of the models that it comes from, see ``experiments.sources``.
        stated: metadata that somebody states, e.g. ``{"license": "mit"}``, instead of what is found; more ``tags``.
        defaults: of the arguments of a run that are not those of :class:`ITRDArguments`.
    """
    path = folder / CARD
    if path.is_file():
        text, mark, end = path.read_text(encoding="utf-8", errors="replace").rpartition(MARK)
        if not mark or mark + end != _mark(text):
            logger.warning(f"[card] {path} was written or changed by hand: left as it is; delete it for a new one")
            return
    text = card_text(model, record, where or folder.name, sources, stated or {}, defaults)
    aside = folder / f"{CARD}.tmp"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        aside.write_text(text + _mark(text), encoding="utf-8")
        move(aside, path)


def card_text(
    model: PreTrainedModel,
    record: Record,
    where: str,
    sources: Mapping[str, str],
    stated: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """A card, metadata included; see :func:`write_card`."""
    recipe = Path(record.recipe).stem if lies_here(record.recipe) else record.recipe
    record = dataclasses.replace(record, recipe=recipe, arguments=public(record.arguments))
    name = (where if is_hub_id(where) else recipe).rpartition("/")[-1]
    licences = {public(source): licence_of(source) for source in sources.values()}
    data = _metadata(model, record, name, sources, licences)
    data |= {**stated, "tags": [*data["tags"], *stated.get("tags", [])]}
    card = ModelCard.from_template(
        ModelCardData(**data),
        template_path=str(TEMPLATE),
        **_loading(model),
        name=name,
        where=where,
        on_hub=is_hub_id(where),
        record=record,
        links={role: _link(source) for role, source in sources.items()},
        licences=licences,
        version=version("itrd_nlp"),
        results=run_table(record).markdown() if record.metrics else "",
        data=_data_names(record),
        arguments=yaml.safe_dump(different(record, defaults or {}), sort_keys=False, allow_unicode=True),
        papers=[PAPERS[loss] for loss in record.arguments["losses"] if loss in PAPERS and loss != "itrd"],
    )
    return f"{card}\n\n"


def _metadata(
    model: PreTrainedModel,
    record: Record,
    name: str,
    sources: Mapping[str, str],
    licences: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The fields of ModelCardData, without what is not known."""
    tag = _loading(model)["tag"]
    bases = [source for source in sources.values() if is_hub_id(source)]
    dataset = _hub_dataset(record)
    scores = record.metrics.get("student", {})
    tags = ["itrd", *(["distillation"] if record.arguments["losses"] else [])]
    data: dict[str, Any] = {"library_name": "transformers", "tags": tags, "pipeline_tag": tag}
    data["base_model"] = bases[0] if len(bases) == 1 else bases or None
    if dataset and is_hub_id(dataset):
        data["datasets"] = [dataset]
    if licences and all(licences.values()) and len({tuple(terms.items()) for terms in licences.values()}) == 1:
        data |= next(iter(licences.values()))
    if tag and scores:
        measured: dict[str, Any] = {
            "task_type": tag,
            "dataset_type": dataset if "datasets" in data else "unknown",
            "dataset_name": _data_names(record)[-1],
            "dataset_split": "validation",
        }
        data["metrics"], data["model_name"] = list(record.metric_names), name
        data["eval_results"] = [
            EvalResult(**measured, metric_type=m, metric_name=SHORT.get(m, m), metric_value=round(float(scores[m]), 4))
            for m in record.metric_names
        ]
    return data


def _loading(model: PreTrainedModel) -> dict[str, Any]:
    """What the template must know to load and call a model; ``tag`` is None for one that it does not show."""
    config = model.config.to_dict()
    ending = next((ending for ending in TASKS if type(model).__name__.endswith(ending)), "")
    return {
        "architecture": type(model).__name__,
        "tag": TASKS.get(ending),
        "auto": f"AutoModel{ending.removesuffix('Model')}",
        "segments": "token_type_ids" in inspect.signature(model.forward).parameters,
        "problem": "regression" if model.config.num_labels == 1 else config.get("problem_type"),
        "own_network": str(config.get("architecture", "")).startswith("cifar_"),
    }


def _hub_dataset(record: Record) -> str | None:
    """The data set that is named; none where files take the place of both its splits."""
    both = record.arguments.get("train_file") and record.arguments.get("validation_file")
    return None if both else record.arguments.get("dataset")


def _data_names(record: Record) -> list[str]:
    """What the data is called, the validation data last."""
    names = [_hub_dataset(record), *(record.arguments.get(key) for key in ("train_file", "validation_file"))]
    unnamed = f"task {record.arguments['task']}" if "task" in record.arguments else "unknown"
    return [name for name in names if name] or [unnamed]


def different(record: Record, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a record that are not the defaults, as a recipe has them; bf16 always, as machines differ.

    Args:
        defaults: of the arguments that are not those of :class:`ITRDArguments`.
    """
    asked = dict(record.arguments)
    stored = asked.pop("teacher_cache", None)
    defaults = json.loads(json.dumps({**defaults, **defaults_of(ITRDArguments)}, default=str))
    known = defaults.keys() - OF_THE_MACHINE
    changes = {key: value for key, value in asked.items() if key in known and _set(value) != _set(defaults[key])}
    if stored == "off":
        changes["teacher_cache"] = stored
    elif stored not in (None, defaults["teacher_cache_dtype"]):
        changes["teacher_cache_dtype"] = stored
    return changes


def _set(value: Any) -> Any:
    """A value; None where it is one that says no to what is off by default, which arguments may make of None."""
    return None if value is False or value in ({}, []) else value


def sources_of_models(student: PreTrainedModel, teacher: PreTrainedModel | None) -> dict[str, str]:
    """The models that a student comes from, by role, as far as two models tell of themselves."""
    sources = {} if teacher is None else {"teacher": teacher.name_or_path or teacher.config.model_type}
    start = student.name_or_path
    return sources if start in ("", *sources.values()) else {**sources, "started from": start}


def licence_of(source: str) -> dict[str, str]:
    """The licence that the card of a model states, or else its config, as metadata of a card; empty where none does."""
    here, stated = lies_here(source), {}
    if not (here or is_hub_id(source)):
        return {}
    with suppress(*UNREADABLE):  # no card there, out of reach, or none that can be read
        stated = ModelCard.load(Path(source) / CARD if here else source, ignore_metadata_errors=True).data.to_dict()
    if "license" not in stated:
        with suppress(*UNREADABLE):
            config, _ = PretrainedConfig.get_config_dict(source)
            stated = {"license": config.get("license") or (config.get("pretrained_cfg") or {}).get("license")}
    return {key: stated[key] for key in LICENCE if isinstance(stated.get(key), str)}


def public(value: Any) -> Any:
    """JSON values without the machine's own part of paths: of a file or folder the name stays."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return Path(value).absolute().name if isinstance(value, str) and lies_here(value) else value


def _link(source: str) -> str:
    return f"[{source}](https://huggingface.co/{source})" if is_hub_id(source) else f"`{public(source)}`"


def lies_here(name: str) -> bool:
    """Whether a name is a path, of something that is there or of this machine in any case."""
    with suppress(OSError):  # a name that is too long for one
        return bool(name) and (Path(name).is_absolute() or Path(name).exists())
    return False


def is_hub_id(name: str) -> bool:
    """Whether a name is a ``namespace/name`` of the Hub and nothing that lies here."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name and not lies_here(name)
    return False


def _mark(text: str) -> str:
    return f"{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"
