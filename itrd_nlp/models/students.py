"""Cut a student out of an encoder: some of its layers, and of these all or the most important units."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.distillation.pooling import SENTENCE_POOLING
from itrd_nlp.models.calibration_set import calibration_batches
from itrd_nlp.models.importance import choose_units
from itrd_nlp.models.layer_choice import best_count, best_layers, pick_layers
from itrd_nlp.models.loading import load_checkpoint, load_config, named_class
from itrd_nlp.models.new import resized_model
from itrd_nlp.models.sentence_pooling import set_pooling
from itrd_nlp.models.student_map import StudentMap, describe_map, part_origins
from itrd_nlp.models.unit_axes import unit_axes
from itrd_nlp.models.vocabulary_cut import CutVocabulary, cut_rows, vocabulary_fields
from itrd_nlp.models.width import Axes, Units, Widths, cut_widths, layer_of, slice_weights, widths_of, with_common_names
from itrd_nlp.utils.errors import UserError, nearest
from itrd_nlp.utils.modeling import is_decoder
from itrd_nlp.utils.tokenizers import table_rows

INITS = ("importance", "random")
UNITS = ("hidden units", "heads of each layer", "inner units of each layer")  # what the map calls the three widths


def cut_student(
    model: PreTrainedModel | str | Path,
    layers: str | Sequence[int] = "even:3",
    *,
    model_class: Any = None,
    seed: int = 0,
    init: str = "importance",
    calibration: Iterable[Mapping[str, Any]] | None = None,
    on_first_rank: Callable[[Callable[[], Any]], Any] = lambda measure: measure(),
    vocabulary: CutVocabulary | None = None,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, StudentMap]:
    """Make a student out of some layers of an encoder, with a map of where each of its parts came from.

    The student is a new model of the same class, precision, device and mode (train or eval). Weights are copied, layers
    by index. ModernBERT's first layer has no `attn_norm` by design: a student whose first layer was another layer of
    the source loses that weight, and the map says so.

    A smaller `hidden_size` or `intermediate_size` keeps the units that matter most on the calibration set, see
    `choose_units`: every matrix, bias, normalisation, embedding and head is sliced alike. Heads keep their size and
    follow the hidden size. The other units are gone from the mean and deviation of each normalisation, which nothing
    corrects: outputs change until the student is trained. Other weights of unequal shape, such as a head for other
    classes, are initialised afresh.

    Args:
        model: the source: a model, or a folder or Hub id to load it from. It is not changed, and no storage is shared.
        layers: which layers to keep, see `pick_layers`; "best:n" measures which, see `best_layers`.
        model_class: class that loads a folder or Hub id, such as `AutoModelForQuestionAnswering`. By default the
            architecture that its config names, or an encoder without a head where it names none.
        seed: of the weights that are initialised afresh.
        init: where widths differ, "importance" slices weights, and "random" initialises those of unequal shape afresh.
        calibration: batches of the source's inputs, such as the first 128 training examples, for "best:n" and widths.
        on_first_rank: for several processes, calls a function that measures and returns its value on the first one.
        vocabulary: of :func:`~itrd_nlp.models.vocabulary_cut.cut_vocabulary`, made of the source's tokenizer: each of
            its pieces keeps its vector, and its bias in the head of a masked language model. Save its tokenizer beside
            the student.
        **config_overrides: config fields of the student, such as hidden_size=192 or attention_probs_dropout_prob=0.0.

    Returns:
        The student and its map.

    Raises:
        UserError: the source is not an encoder of plain layers, the layers cannot be picked, an override does not fit,
            or there is no calibration set for what is measured.
    """
    source, fresh = _load(model, model_class, seed)
    _check_encoder(source)
    prefix, source_layers = find_layers(source)
    before, overrides = widths_of(source.config), with_common_names(source.config, config_overrides)
    if init not in INITS:
        raise UserError(f'init={init!r}: expected "importance" or "random"{nearest(str(init), INITS)}')
    overrides, widths = cut_widths(source.config, overrides) if init == "importance" else (overrides, before)
    if vocabulary is not None:
        overrides |= vocabulary_fields(source, vocabulary, overrides)
    _check_plain(source, prefix)
    choice = on_first_rank(lambda: _choose(source, fresh, layers, widths, calibration))
    student = resized_model(source, choice.layers, overrides, seed).to(source.device).train(source.training)
    find_layers(student)  # refuses ALBERT, whose groups of layers stay as many
    weights = _weights_to_copy(source, student, choice, prefix, vocabulary)
    own = student.state_dict()
    copied = {name for name in weights.keys() & own.keys() if weights[name].shape == own[name].shape}
    student.load_state_dict({name: weights[name] for name in copied}, strict=False)
    trained = copied - {_renumber(name, prefix, choice.layers) for name in fresh}
    units = zip(UNITS, widths, before, strict=True)
    return student, StudentMap(
        student=type(student).__name__,
        layers=choice.layers,
        source_layers=len(source_layers),
        parts=part_origins(student, prefix, choice.layers, trained, sorted(weights.keys() - own.keys())),
        source_parameters=source.num_parameters(),
        parameters=student.num_parameters(),
        vocabulary=vocabulary and (vocabulary.pieces_before, len(vocabulary.kept_ids)),
        comparison=choice.comparison,
        units={kind: (count, total) for kind, count, total in units if count != total},
    )


def student_from_teacher(
    model: PreTrainedModel | str | Path,
    layers: str | Sequence[int] = "even:3",
    *,
    verbose: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """The student of `cut_student` alone, in the precision of its source; prints its map unless `verbose` is False."""
    student, student_map = cut_student(model, layers, **options)
    if verbose:
        print(describe_map(student_map))
    return student


def _load(model: PreTrainedModel | str | Path, model_class: Any, seed: int) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of the weights that its checkpoint lacks (those of a new head)."""
    if isinstance(model, PreTrainedModel):
        return _with_pooling(model), frozenset()
    if not isinstance(model, str | Path):
        raise UserError(
            f"a {type(model).__name__}: expected a PreTrainedModel, a folder or a Hub id; unwrap a compiled or "
            "parallel model, and merge adapters (merge_and_unload)"
        )
    model = str(model)
    config = load_config(model)
    if model_class is None:
        model_class = named_class(config, model) if config.architectures else AutoModel
    loaded = load_checkpoint(model, model_class, config, seed=seed)
    if not find_labels(type(loaded.model)):  # without a head
        set_pooling(loaded.model.config, model)
    return loaded


def _with_pooling(model: PreTrainedModel) -> PreTrainedModel:
    """A model without a head whose config says how its folder makes embeddings; the given one is not changed."""
    if find_labels(type(model)) or not model.name_or_path or hasattr(model.config, SENTENCE_POOLING):
        return model
    model = copy.copy(model)
    model.config = copy.deepcopy(model.config)
    set_pooling(model.config, model.name_or_path)
    return model


def _check_encoder(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder, expected an encoder; use a BERT-like model")
    if is_decoder(model):
        raise UserError(f"{name} is a decoder (its attention is causal), expected an encoder; use a BERT-like model")


def _check_plain(source: PreTrainedModel, prefix: str) -> None:
    """Refuse layers with other weights than their config's, as adapters, pruning and quantisation leave them."""
    own = source.state_dict()
    with torch.device("meta"):
        plain = resized_model(source, range(source.config.num_hidden_layers), {}).state_dict()
    for name, weight in plain.items():
        if layer_of(name, prefix) is not None and (name not in own or own[name].shape != weight.shape):
            raise UserError(
                f"{type(source).__name__} has no {name} of the shape that its config says, as where adapters, pruning "
                "or quantisation changed its layers: expected plain ones; merge adapters (merge_and_unload), or load "
                "the model anew"
            )


class _Choice(NamedTuple):
    layers: list[int]
    comparison: str = ""  # with other layers
    axes: Axes = {}
    units: Units | None = None  # None: all of them


def _choose(
    source: PreTrainedModel,
    fresh: frozenset[str],
    layers: str | Sequence[int],
    widths: Widths,
    calibration: Iterable[Mapping[str, Any]] | None,
) -> _Choice:
    """The layers and units that a student keeps; `fresh` names the source's weights that are new."""
    total, narrow = source.config.num_hidden_layers, widths != widths_of(source.config)
    count = best_count(layers, total)
    choice = _Choice([] if count else pick_layers(layers, total))
    if not (count or narrow):
        return choice
    batches = calibration_batches(
        source, calibration, f'layers="{layers}"' if count else "what a narrower student keeps"
    )
    if count:
        encoder_alone = any(not name.startswith(f"{source.base_model_prefix}.") for name in fresh)
        choice = _Choice(*best_layers(source.base_model if encoder_alone else source, count, batches))
    if not narrow:
        return choice
    axes = unit_axes(source, batches[0])
    return choice._replace(axes=axes, units=choose_units(source, axes, widths, choice.layers, batches))


def _weights_to_copy(
    source: PreTrainedModel, student: PreTrainedModel, choice: _Choice, prefix: str, vocabulary: CutVocabulary | None
) -> dict[str, Tensor]:
    """The source's weights of the layers, units and pieces that a student keeps, by the student's names."""
    weights = source.state_dict()
    if choice.units is not None:
        _check_parts(source, student, prefix)
        weights = slice_weights(weights, choice.axes, choice.units, prefix)
    renumbered = {_renumber(name, prefix, choice.layers): weight for name, weight in weights.items()}
    renumbered.pop("", None)  # of layers that are not kept
    # what the first layer alone has, for all: T5's biases of positions
    first = {name: name.replace(f"{prefix}.0.", f"{prefix}.1.", 1) for name in weights if layer_of(name, prefix) == 0}
    borrowed = {name: weights[name] for name, second in first.items() if second not in weights}
    weights = {**borrowed, **renumbered}
    if vocabulary is None:
        return weights
    return cut_rows(weights, student.state_dict(), table_rows(source), vocabulary.kept_ids)


def _check_parts(source: PreTrainedModel, student: PreTrainedModel, prefix: str) -> None:
    """Refuse a width in which a model has other parts: ELECTRA projects embeddings unless both sizes are equal."""
    before, after = [
        {name for name in model.state_dict() if layer_of(name, prefix) is None} for model in (source, student)
    ]
    if changed := sorted(before ^ after):
        word = "without" if changed[0] in before else "with"
        raise UserError(
            f"hidden_size={student.config.hidden_size} makes a {type(source).__name__} {word} {changed[0]}, unlike its "
            'source: take another width, or write init="random" for weights that start afresh'
        )


def _renumber(name: str, prefix: str, layers: list[int]) -> str:
    """Name in the student of a weight of the source; empty when its layer is not kept."""
    layer = layer_of(name, prefix)
    if layer is None:
        return name
    return name.replace(f"{prefix}.{layer}.", f"{prefix}.{layers.index(layer)}.", 1) if layer in layers else ""
