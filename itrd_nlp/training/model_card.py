"""The model card of a student's folder: what it is, what was measured, how to load it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from itrd_nlp.training.arguments import ITRDArguments, defaults_of
from itrd_nlp.training.lineage import CARD, is_hub_id, licence_of, lies_here, public
from itrd_nlp.training.model_card_text import BIBTEX, KINDS, LIMITS, OURS, SHELL, SOURCES, kind_of, loading_code
from itrd_nlp.training.record import Record, run_table
from itrd_nlp.utils.errors import writing
from itrd_nlp.utils.io import move
from itrd_nlp.utils.tables import SHORT

MARK = "<!-- made by itrd_nlp, which leaves this file alone once it was changed; sha256 of what stands above: "
OF_THE_MACHINE = ("use_cpu", "deepspeed")  # arguments that no recipe has
DATA = ("dataset", "train_file", "validation_file")  # arguments that name data


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
    if path.is_file() and _changed(path):
        print(f"[card] {path} was written or changed by hand: left as it is; delete it to have a new one", flush=True)
        return
    text = card_text(model, record, where or folder.name, sources, stated or {}, defaults)
    aside = folder / f"{CARD}.tmp"
    with writing(path):
        aside.write_text(f"{text}{MARK}{_digest(text)} -->\n", encoding="utf-8")
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
    licences = {public(source): licence_of(source) for source in sources.values()}
    name = where.rpartition("/")[-1] if is_hub_id(where) else recipe.rpartition("/")[-1]
    found = _metadata(model, record, name, sources, licences)
    data = ModelCardData(**{**found, **stated, "tags": [*found["tags"], *stated.get("tags", [])]})
    parts = [
        f"# {name}",
        _summary(model, record, sources),
        "## Results",
        _results(record),
        *_loading(model, where),
        "## Training",
        *_training(record, defaults or {}),
        "## Licence",
        _licence_text(data, licences),
        "## Citation",
        f"```bibtex\n{BIBTEX}```",
        *_papers(record),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n\n"


def _metadata(
    model: PreTrainedModel,
    record: Record,
    name: str,
    sources: Mapping[str, str],
    licences: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The fields of ModelCardData, without what is not known."""
    bases = [source for source in sources.values() if is_hub_id(source)]
    dataset = _used_dataset(record)
    scores = record.metrics.get("student", {})
    losses = record.arguments["losses"]
    kind = kind_of(model)
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["itrd", *(["distillation"] if losses else [])]}
    if kind is not None:
        fields["pipeline_tag"] = kind[1].tag
    if bases:
        fields["base_model"] = bases[0] if len(bases) == 1 else bases
    if dataset and is_hub_id(dataset):
        fields["datasets"] = [dataset]
    if licences and all(licences.values()) and len({tuple(found.items()) for found in licences.values()}) == 1:
        fields |= next(iter(licences.values()))
    if kind is not None and scores:
        measured: dict[str, Any] = {
            "task_type": kind[1].tag,
            "dataset_type": dataset if "datasets" in fields else "unknown",
            "dataset_name": _data_names(record)[-1],
            "dataset_split": "validation",
        }
        fields["metrics"] = list(record.metric_names)
        fields["model_name"] = name
        fields["eval_results"] = [
            EvalResult(**measured, metric_type=m, metric_name=SHORT.get(m, m), metric_value=round(float(scores[m]), 4))
            for m in record.metric_names
        ]
    return fields


def _summary(model: PreTrainedModel, record: Record, sources: Mapping[str, str]) -> str:
    losses = record.arguments["losses"]
    how = f"distilled with {' + '.join(f'`{name}`' for name in losses)}" if losses else "trained on its labels alone"
    linked = {
        role: f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{public(name)}`"
        for role, name in sources.items()
    }
    lineage = "; ".join(f"{role}: {name}" for role, name in linked.items())
    return (
        f"A `{type(model).__name__}` of {record.parameters['student']:,} parameters, {how} by itrd_nlp "
        f"{version('itrd_nlp')}{f' ({lineage})' if lineage else ''}."
    )


def _results(record: Record) -> str:
    return run_table(record).markdown() if record.metrics else "Not measured: no validation data was given."


def _loading(model: PreTrainedModel, where: str) -> list[str]:
    found = kind_of(model)
    if found is None:
        return ["## Intended use and limits", LIMITS]
    auto, kind = found
    parts = ["## How to load", *([] if is_hub_id(where) else [f"`{where}` stands for the path of this folder."])]
    parts += [f"```python\n{loading_code(model, auto, kind, where)}```"]
    if kind is KINDS["ForQuestionAnswering"]:
        parts.append("Texts of any length, best of several windows, with the confidence, by itrd_nlp:")
        parts += [f"```python\n{OURS.format(where=where)}```", f"```bash\n{SHELL.format(where=where)}```"]
    return [*parts, "## Intended use and limits", kind.use, LIMITS]


def _used_dataset(record: Record) -> str | None:
    """The data set of the Hub; none where files take the place of both its splits."""
    both = record.arguments.get("train_file") and record.arguments.get("validation_file")
    return None if both else record.arguments.get("dataset")


def _data_names(record: Record) -> list[str]:
    """What the data is called, the validation data last."""
    named = {**record.arguments, "dataset": _used_dataset(record)}
    found = [named[key] for key in DATA if named.get(key)]
    return found or [f"task {record.arguments['task']}" if "task" in record.arguments else "unknown"]


def _training(record: Record, defaults: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{value:,} {key}" for key, value in record.data.items() if value)
    data = f"Data: {', '.join(f'`{name}`' for name in _data_names(record))}{f' ({counts})' if counts else ''}."
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    commit = f", commit {record.commit[:10]}" if record.commit else ""
    processes = record.arguments.get("world_size", 1)
    return [
        f"{data} Recipe `{record.recipe}`, on {processes} process{'es' if processes > 1 else ''}; what differs from "
        "the defaults of `itrd distill`:",
        f"```yaml\n{yaml.safe_dump(different(record, defaults), sort_keys=False, allow_unicode=True)}```",
        f"Versions: itrd_nlp {version('itrd_nlp')}{commit}, {versions}.",
    ]


def different(record: Record, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a record that are not the defaults, as a recipe has them; bf16 always, as machines differ.

    Args:
        defaults: of the arguments that are not those of :class:`ITRDArguments`.
    """
    asked = dict(record.arguments)
    stored = asked.pop("teacher_cache", None)
    defaults = json.loads(json.dumps({**defaults, **defaults_of(ITRDArguments)}, default=str))
    found = {key: value for key, value in asked.items() if key in defaults and _set(value) != _set(defaults[key])}
    for key in OF_THE_MACHINE:
        found.pop(key, None)
    if stored == "off":
        found["teacher_cache"] = stored
    elif stored not in (None, defaults["teacher_cache_dtype"]):
        found["teacher_cache_dtype"] = stored
    return found


def _set(value: Any) -> Any:
    """A value; None where it is one that says no to what is off by default, which arguments may make of None."""
    return None if value is False or value in ({}, []) else value


def _licence_text(data: ModelCardData, licences: Mapping[str, Mapping[str, str]]) -> str:
    told = ", ".join(f"{name}: {found.get('license', 'none stated')}" for name, found in licences.items())
    if data.license:
        return f"{data.license_name or data.license}. Models that it comes from: {told or 'none'}."
    return (
        f"Not stated ({told or 'it was trained from scratch'}): before you publish this model, state a licence "
        "that the models and the data it comes from allow, as `license:` at the top of this file."
    )


def _papers(record: Record) -> list[str]:
    papers = [SOURCES[name] for name in record.arguments["losses"] if name in SOURCES and name != "itrd"]
    return ["Methods used beside or instead of it:", "\n".join(f"- {paper}" for paper in papers)] if papers else []


def _changed(path: Path) -> bool:
    """Whether a card is not as :func:`write_card` left it."""
    text, mark, digest = path.read_text(encoding="utf-8", errors="replace").rpartition(MARK)
    return not mark or digest != f"{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
