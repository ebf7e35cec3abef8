"""Cut a student out of an encoder: some of its layers, and everything outside them unchanged."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.models.loading import load_checkpoint, load_config, named_class
from itrd_nlp.models.vocabulary_cut import CutVocabulary, cut_rows, vocabulary_fields
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.tokenizers import table_rows

SPECS = ("first", "even", "last")
OPTIONS = ("layers", "vocabulary")  # of a student that are no config fields


@dataclasses.dataclass(frozen=True)
class StudentMap:
    """Where every part of a student came from."""

    student: str  # its class
    layers: list[int]  # zero-based indices of the source's layers that it keeps
    source_layers: int  # number of layers of the source
    parts: dict[str, str]  # part of the student -> its origin; layers are counted from one here, as people do
    source_parameters: int  # number of parameters of the source
    parameters: int  # and of the student
    vocabulary: tuple[int, int] | None = None  # pieces of the source and of the student, where they were cut


def describe_map(student_map: StudentMap) -> str:
    """The map as lines: one for each part of the student, and the number of parameters before and after."""
    before, after = student_map.source_parameters, student_map.parameters
    pieces = [f"  vocabulary: {m:,} -> {n:,} pieces" for m, n in filter(None, [student_map.vocabulary])]
    return "\n".join(
        [f"{student_map.student}: {len(student_map.layers)} of {student_map.source_layers} layers"]
        + [f"  {part} <- {origin}" for part, origin in student_map.parts.items()]
        + pieces
        + [f"  parameters: {before:,} -> {after:,} ({100 * after / before:.0f}%)"]
    )


def pick_layers(layers: str | Sequence[int], total: int) -> list[int]:
    """Zero-based indices of the layers that a specification keeps.

    Args:
        layers: "first:n", "last:n", "even:n" (outputs evenly spaced and the last layer kept: round(k total / n) - 1 for
            k = 1..n), or increasing zero-based indices such as [0, 4, 8].
        total: number of layers to choose from.

    Returns:
        Increasing indices from 0 to total - 1.

    Raises:
        UserError: the specification is malformed or asks for layers that do not exist.

    Example:
        >>> pick_layers("even:3", 12)
        [3, 7, 11]
    """
    if not isinstance(layers, str):
        return _checked_indices(layers, total)
    kind, _, number = layers.partition(":")
    if kind not in SPECS:
        near = difflib.get_close_matches(kind, SPECS, 1, 0)[0]
        raise UserError(f'layers="{layers}" is not known; did you mean "{near}:{number or min(3, total)}"?')
    n = int(number) if number.isdecimal() else 0
    if not 1 <= n <= total:
        example = f"{kind}:{min(3, total)}"
        raise UserError(f'layers="{layers}" must ask for 1 to {total} of {total} layers; write e.g. "{example}"')
    if kind == "even":
        return [round(k * total / n) - 1 for k in range(1, n + 1)]
    return list(range(n)) if kind == "first" else list(range(total - n, total))


def _checked_indices(layers: Sequence[int], total: int) -> list[int]:
    if not isinstance(layers, Sequence) or not layers or any(type(i) is not int for i in layers):
        raise UserError(f'layers={layers!r} is no choice of layers; write "even:3" or zero-based indices [0, 4, 8]')
    outside = [i for i in layers if not 0 <= i < total]
    if outside:
        raise UserError(f"layers={list(layers)}: the source has no {outside}; use indices from 0 to {total - 1}")
    if any(a >= b for a, b in zip(layers, layers[1:], strict=False)):
        raise UserError(f"layers={list(layers)} must increase without repeats; write {sorted(set(layers))}")
    return list(layers)


def _student_config(config: PretrainedConfig, picked: list[int], overrides: dict[str, Any]) -> PretrainedConfig:
    """A copy of a config for the picked layers, with the overrides applied.

    Lists with one entry per layer (ModernBERT's `layer_types`, Longformer's `attention_window`) keep the entries of the
    picked layers. Sizes that follow `hidden_size` (such as DeBERTa's `pooler_hidden_size`) follow its override.
    """
    renamed, fields, total = config.attribute_map, config.to_dict(), config.num_hidden_layers
    count_field = renamed.get("num_hidden_layers", "num_hidden_layers")
    known = ({*fields, *renamed, "num_labels"}) - {"dtype", "model_type", "transformers_version"}
    for name, value in overrides.items():
        if name in ("num_hidden_layers", count_field):
            raise UserError(f'{name}={value} cannot be overridden; choose layers instead, e.g. layers="even:{value}"')
        if name not in known:
            near = difflib.get_close_matches(name, sorted({*known, *OPTIONS}), 1, 0)[0]
            raise UserError(f'"{name}" is not a field of {type(config).__name__}; did you mean "{near}"?')
    for name, value in fields.items():
        by_layer = ("layer" in name or name == "attention_window") and isinstance(value, (list, tuple))
        if by_layer and len(value) == total and name not in overrides:
            fields[name] = [value[i] for i in picked]
        elif name.endswith("_hidden_size") and value == config.hidden_size:
            fields[name] = overrides.get("hidden_size", value)
    if overrides.get("num_labels", config.num_labels) != config.num_labels:
        fields.update(id2label=None, label2id=None)
    fields.update({renamed.get(name, name): value for name, value in overrides.items()})
    fields[count_field] = len(picked)
    changed = type(config).from_dict(fields)
    changed._attn_implementation = config._attn_implementation
    width, heads = changed.hidden_size, getattr(changed, "num_attention_heads", 1)  # FNet has none
    if heads < 1 or width % heads:
        raise UserError(f"hidden_size={width} is not a multiple of num_attention_heads={heads}; override both to fit")
    return changed


def cut_student(
    model: PreTrainedModel | str,
    layers: str | Sequence[int] = "even:3",
    *,
    model_class: Any = None,
    seed: int = 0,
    vocabulary: CutVocabulary | None = None,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, StudentMap]:
    """Make a student out of some layers of an encoder, with a map of where each of its parts came from.

    The student is a new model of the same class, precision, device and mode (train or eval). Weights of equal shape are
    copied, layers by index; the others are initialised afresh. ModernBERT's first layer has no `attn_norm` by design:
    a student whose first layer was another layer of the source loses that weight, and the map says so.

    Args:
        model: the source: a model, or a folder or Hub id to load it from. It is not changed, and no storage is shared.
        layers: which layers to keep, see `pick_layers`.
        model_class: class that loads a folder or Hub id, such as `AutoModelForQuestionAnswering`. By default the
            architecture that its config names, or an encoder without a head where it names none.
        seed: of the weights that are initialised afresh.
        vocabulary: of :func:`~itrd_nlp.models.vocabulary_cut.cut_vocabulary`, made of the source's tokenizer: each of
            its pieces keeps its vector, and its bias in the head of a masked language model. Save its tokenizer beside
            the student.
        **config_overrides: config fields of the student, such as hidden_size=192 or attention_probs_dropout_prob=0.0.

    Returns:
        The student and its map.

    Raises:
        UserError: the source is no encoder, the layers cannot be picked, or an override does not fit.
    """
    source, fresh = _load(model, model_class, seed)
    _check_encoder(source)
    prefix, source_layers = find_layers(source)
    picked = pick_layers(layers, len(source_layers))
    if vocabulary is not None:
        config_overrides |= vocabulary_fields(source, vocabulary, config_overrides)
    student = _new_student(source, picked, config_overrides, seed)
    weights = {_renumber(name, prefix, picked): weight for name, weight in source.state_dict().items()}
    weights.pop("", None)  # of layers that were not picked
    if vocabulary is not None:
        weights = cut_rows(weights, student.state_dict(), table_rows(source), vocabulary.kept_ids)
    copied = set()
    for name, weight in student.state_dict().items():
        if name in weights and weights[name].shape == weight.shape:
            weight.copy_(weights[name])
            copied.add(name)
    trained = copied - {_renumber(name, prefix, picked) for name in fresh}
    dropped = sorted(weights.keys() - student.state_dict().keys())
    return student, StudentMap(
        student=type(student).__name__,
        layers=picked,
        source_layers=len(source_layers),
        parts=_origins(student, prefix, picked, trained, dropped),
        source_parameters=source.num_parameters(),
        parameters=student.num_parameters(),
        vocabulary=vocabulary and (vocabulary.pieces_before, len(vocabulary.kept_ids)),
    )


def student_from_teacher(
    model: PreTrainedModel | str,
    layers: str | Sequence[int] = "even:3",
    *,
    model_class: Any = None,
    verbose: bool = True,
    seed: int = 0,
    vocabulary: CutVocabulary | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """The student of `cut_student` alone; prints its map unless `verbose` is False."""
    options = {"model_class": model_class, "seed": seed, "vocabulary": vocabulary, **config_overrides}
    student, student_map = cut_student(model, layers, **options)
    if verbose:
        print(describe_map(student_map))
    return student


def _load(model: PreTrainedModel | str, model_class: Any, seed: int) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of the weights that its checkpoint lacks (those of a new head)."""
    if not isinstance(model, str):
        return model, frozenset()
    config = load_config(model)
    if model_class is None:
        model_class = named_class(config, model) if config.architectures else AutoModel
    return load_checkpoint(model, model_class, config, seed=seed)


def _check_encoder(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder, expected an encoder; use a BERT-like model")
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise UserError(f"{name} is a decoder (its attention is causal), expected an encoder; use a BERT-like model")


def _new_student(source: PreTrainedModel, picked: list[int], overrides: dict[str, Any], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            config = _student_config(source.config, picked, overrides)
            student = type(source)._from_config(config, dtype=source.dtype)
        except UserError:
            raise
        except (StrictDataclassError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{overrides} does not fit {type(source).__name__}: {first_line(error)}; correct the value"
            ) from error
    return student.to(source.device).train(source.training)


def _renumber(name: str, prefix: str, picked: list[int]) -> str:
    """Name in the student of a weight of the source; empty when its layer is not picked."""
    if not name.startswith(f"{prefix}."):
        return name
    index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{picked.index(int(index))}.{rest}" if int(index) in picked else ""


def _origins(
    student: PreTrainedModel, prefix: str, picked: list[int], copied: set[str], dropped: list[str]
) -> dict[str, str]:
    """Part of the student -> its origin, for each layer and each module outside the layers."""
    weights: dict[str, list[str]] = {}
    for name in [*student.state_dict(), *dropped]:
        weights.setdefault(_part(name, prefix), []).append(name)
    origins = {}
    for part, names in weights.items():
        label, origin = part.removeprefix(f"{student.base_model_prefix}."), "copied"
        if part.startswith(f"{prefix}."):
            index = int(part.removeprefix(f"{prefix}."))
            label, origin = f"student layer {index + 1}", f"teacher layer {picked[index] + 1} (index {picked[index]})"
        gone = [name for name in names if name in dropped]
        new = [name for name in names if name not in copied and name not in gone]
        notes = [] if copied.isdisjoint(names) else [origin]
        for word, subset, total in (("new", new, len(names) - len(gone)), ("dropped", gone, len(names))):
            if 2 < len(subset) < total:
                notes.append(f"{word}: {len(subset)} of {total} weights")
            elif subset:
                few = ", ".join(name.removeprefix(f"{part}.") for name in subset)
                notes.append(word if len(subset) == total else f"{word}: {few}")
        origins[label] = "; ".join(notes)
    return origins


def _part(name: str, prefix: str) -> str:
    """The module of a line of the map: a layer, or the outermost module that does not hold the layers."""
    pieces, depth = name.split("."), 1
    while f"{prefix}.".startswith(".".join(pieces[:depth]) + "."):
        depth += 1
    return ".".join(pieces[:depth])
