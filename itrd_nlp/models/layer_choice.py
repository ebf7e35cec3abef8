"""Which layers a student keeps: by their position, or those whose cut changes the outputs least."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.feature_extractor import read_logits
from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.distillation.pooling import sentence_pooling
from itrd_nlp.distillation.probe import outputs_of
from itrd_nlp.losses.base import Shapes
from itrd_nlp.losses.kd import KDLoss
from itrd_nlp.models.calibration_set import Batch
from itrd_nlp.models.new import resized_model
from itrd_nlp.utils.errors import UserError, nearest
from itrd_nlp.utils.modeling import INDEPENDENT, eval_mode

FIXED = ("first", "even", "last")
SPECS = (*FIXED, "best")
SUBSETS = 300  # so many are all tried; of more, layers are removed one by one
FINALISTS = 20  # the best of all subsets, which are compared on more tokens
TOKENS = (1024, 2048)  # of the calibration set, padding included, for all subsets and for finalists


def pick_layers(layers: str | Sequence[int], total: int) -> list[int]:
    """Zero-based indices of the layers that a specification keeps.

    Args:
        layers: "first:n", "last:n", "even:n" (outputs evenly spaced and the last layer kept: round(k total / n) - 1 for
            k = 1..n; not "best:n", which `best_layers` measures), or increasing zero-based indices such as [0, 4, 8].
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
    kind, n = _parse(layers, total)
    if kind == "best":
        raise UserError(f'layers="{layers}" is chosen on a calibration set: pass it as calibration=[batch, ...]')
    if kind == "even":
        return [round(k * total / n) - 1 for k in range(1, n + 1)]
    return list(range(n)) if kind == "first" else list(range(total - n, total))


def best_count(layers: str | Sequence[int], total: int) -> int:
    """The number of layers that "best:n" asks for; 0 for another specification, `UserError` as of `pick_layers`."""
    kind, n = _parse(layers, total) if isinstance(layers, str) else ("", 0)
    return n if kind == "best" else 0


def _parse(layers: str, total: int) -> tuple[str, int]:
    kind, _, number = layers.partition(":")
    if kind not in SPECS:
        kinds = ", ".join(SPECS)
        raise UserError(f'layers="{layers}": expected one of {kinds} and a number: "first:3"{nearest(kind, SPECS)}')
    n = int(number) if number.isdecimal() else 0
    if not 1 <= n <= total:
        example = f"{kind}:{min(3, total)}"
        raise UserError(f'layers="{layers}" must ask for 1 to {total} of {total} layers; write e.g. "{example}"')
    return kind, n


def _checked_indices(layers: Sequence[int], total: int) -> list[int]:
    if not isinstance(layers, Sequence) or not layers or any(type(i) is not int for i in layers):
        raise UserError(f'layers={layers!r} is not a choice of layers; write "even:3" or zero-based indices [0, 4, 8]')
    outside = [i for i in layers if not 0 <= i < total]
    if outside:
        raise UserError(f"layers={list(layers)}: the source has no {outside}; use indices from 0 to {total - 1}")
    if any(a >= b for a, b in zip(layers, layers[1:], strict=False)):
        raise UserError(f"layers={list(layers)} must increase without repeats; write {sorted(set(layers))}")
    return list(layers)


def best_layers(model: PreTrainedModel, count: int, batches: Sequence[Batch]) -> tuple[list[int], str]:
    """The layers whose untrained cut stays closest to a model's outputs on the calibration set.

    All subsets are tried where they are at most 300, and the best 20 again on more tokens. Of more subsets, the layer
    whose removal changes the outputs least is removed, again and again. The first, evenly spaced and last layers are
    compared with what that finds.

    Closeness is that of :class:`~itrd_nlp.losses.kd.KDLoss` at T = 1: the KL divergence from the model's
    distributions over answer starts and ends, classes or tags; the squared difference of a score. Encoders without a
    head are compared by 1 - cos of their embeddings.

    Args:
        model: a model with a trained head, or an encoder.
        count: number of layers to keep.
        batches: the calibration set; its first 2,048 tokens are used.

    Returns:
        Increasing indices, of equally close subsets the first; and how much the cut changes the outputs, in words.
    """
    total, (screening, final) = model.config.num_hidden_layers, [list(_first_tokens(batches, room)) for room in TOKENS]
    remaining = tuple(range(total))
    if math.comb(total, count) <= SUBSETS:
        finalists = _closest(_differences(model, combinations(remaining, count), screening))[:FINALISTS]
    else:
        while len(remaining) > count:
            remaining = _closest(_differences(model, combinations(remaining, len(remaining) - 1), final))[0]
        finalists = [remaining]
    fixed = {f"{kind}:{count}": tuple(pick_layers(f"{kind}:{count}", total)) for kind in FIXED}
    differences = _differences(model, {*finalists, *fixed.values()}, final)
    best = _closest(differences)[0]
    changes = [f"{spec} {differences[subset]:.4g}" for spec, subset in {f"best:{count}": best, **fixed}.items()]
    return list(best), f"change of the outputs before training: {', '.join(changes)}"


def _closest(differences: dict[tuple[int, ...], float]) -> list[tuple[int, ...]]:
    return sorted(differences, key=lambda subset: (differences[subset], subset))


def _first_tokens(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """The first rows of batches, up to so many tokens in all, padding included; at least one row."""
    room = tokens
    for batch in batches:
        length = batch["input_ids"].shape[1]
        rows = min(len(batch["input_ids"]), max(room // length, int(room == tokens)))
        if rows < 1:
            return
        yield {key: value[:rows] for key, value in batch.items()}
        room -= rows * length


class _Remembering(nn.Module):
    """A layer that runs once: whatever comes before it must stay the same."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.output = layer, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.output is None:
            self.output = self.layer(*args, **kwargs)
        return self.output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # such as ModernBERT's attention_type, which its encoder reads
            return getattr(super().__getattr__("layer"), name)


def _differences(
    model: PreTrainedModel, subsets: Iterable[tuple[int, ...]], batches: Sequence[Batch]
) -> dict[tuple[int, ...], float]:
    """How far a model with some of its layers is from all of it, for each subset: a mean over the examples.

    Subsets are tried in lexicographic order, so that a layer runs once for all that begin alike.
    """
    path, layers = find_layers(model)
    parent, _, child = path.rpartition(".")
    holder, firsts = model.get_submodule(parent), [_as_first(model, i) for i in range(len(layers))]
    totals, examples = dict.fromkeys(sorted(subsets), 0.0), sum(len(batch["input_ids"]) for batch in batches)
    with eval_mode(model):
        try:
            for batch in batches:
                setattr(holder, child, layers)
                full, share = _read(model, batch), len(batch["input_ids"]) / examples
                before: tuple[int, ...] = ()
                chain: list[nn.Module] = []
                for subset in totals:
                    alike = next((k for k, i in enumerate(before) if i != subset[k]), len(before))
                    added = [firsts[i] if k == 0 else layers[i] for k, i in enumerate(subset) if k >= alike]
                    chain, before = chain[:alike] + [_Remembering(layer) for layer in added], subset
                    setattr(holder, child, nn.ModuleList(chain))
                    totals[subset] += share * _difference(model, _read(model, batch), full)
        finally:
            setattr(holder, child, layers)
    return totals


def _as_first(model: PreTrainedModel, index: int) -> nn.Module:
    """A layer as it is where it comes first: without a normalisation before its attention in ModernBERT, and with the
    biases of positions in T5, which are those of its first layer."""
    layers = find_layers(model)[1]
    layer = layers[index]
    with torch.device("meta"):
        first = find_layers(resized_model(model, [index], {}))[1][0]
    if first.state_dict().keys() == layer.state_dict().keys():
        return layer
    first.load_state_dict({**layers[0].state_dict(), **layer.state_dict()}, strict=False, assign=True)
    return first.eval()


def _read(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """The outputs that are compared: the logits of each head, or the embedding where there is no head."""
    outputs = outputs_of(model, batch)
    if heads := [name for name in outputs if name.endswith("logits")]:
        return read_logits(outputs, heads, batch)
    return {"embedding": sentence_pooling(model.config)([outputs.last_hidden_state], batch)[0]}


def _difference(model: PreTrainedModel, cut: dict[str, Tensor], full: dict[str, Tensor]) -> float:
    if "embedding" in full:
        return 1 - F.cosine_similarity(cut["embedding"].float(), full["embedding"].float()).mean().item()
    problem = model.config.problem_type
    independent, scores = problem == INDEPENDENT, problem == "regression"
    kd = KDLoss(Shapes((), (), tuple(full), independent=independent, scores=scores), temperature=1.0)
    return sum(kd.difference(cut[head].float(), logits.float()).item() for head, logits in full.items())
