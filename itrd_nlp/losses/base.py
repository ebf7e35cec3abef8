"""The base class of distillation losses, and the representations that they compare."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from itrd_nlp.losses.distributed import gather_samples
from itrd_nlp.losses.functional import to_fp32
from itrd_nlp.utils.errors import UserError

INDEX = "training_index"  # entry of a batch: the index of each example in the training data
GROUP = "group_index"  # entry of a batch, and column of the data: the query that each document belongs to
FEW = 128  # samples; up to so many, casting a projection's weights costs more than half precision saves
SPAN_HEADS = ("start_logits", "end_logits")  # one score a token: padding must not compete with tokens


class Representation(NamedTuple):
    """One model's outputs for a batch, as losses compare them."""

    logits: dict[str, Tensor]  # one (n, classes) tensor a head
    features: tuple[Tensor, ...]  # one (n, d) tensor a matched layer
    mask: Tensor | None  # (batch, length): True where a token is not padding; None for images
    projected: tuple[Tensor, ...] = ()  # the student's features in the teacher's width, where a loss projects them
    attention: tuple[Tensor, ...] = ()  # queries, keys, values of each matched layer, where a loss reads them: one
    # (tokens, d) tensor each, every token but padding a row
    maps: tuple[Tensor, ...] = ()  # (n, d, height, width) of each stage of an image classifier, and the input of its
    # classifier, where a loss reads them; the teacher's before their activation
    samples: Tensor | None = None  # (batch,): how many of the n samples come from each example; None for images

    def map(self, function: Callable[[Tensor], Tensor]) -> "Representation":
        """The same representation, with ``function`` of its logits, features, projections, attention and maps."""
        kinds = ("features", "projected", "attention", "maps")
        layers = {kind: tuple(map(function, getattr(self, kind))) for kind in kinds}
        return self._replace(logits={head: function(x) for head, x in self.logits.items()}, **layers)

    def float(self) -> "Representation":
        """The same representation, with half-precision tensors in fp32."""
        return self.map(to_fp32)


def by_example(x: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of (n, d) as (batch, most, d), padded with zeros, and the (batch, most) mask of the real ones.

    Args:
        x: the rows of the first example, then those of the second, and so on.
        samples: (batch,) rows of each example.

    Example:
        >>> padded, mask = by_example(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 2]))
        >>> padded.tolist(), mask.tolist()
        ([[[0.0, 1.0], [0.0, 0.0]], [[2.0, 3.0], [4.0, 5.0]]], [[True, False], [True, True]])
    """
    mask = torch.arange(int(samples.max()), device=x.device) < samples.to(x.device)[:, None]
    return x.new_zeros(*mask.shape, x.shape[1]).masked_scatter(mask[..., None], x), mask


def in_its_precision(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output in the precision of ``x``: FSDP2 and DeepSpeed hold weights in half precision in a forward."""
    weight = next(module.parameters(), None)
    if weight is None or weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return module(x)
    return module(x.to(weight.dtype)).to(x.dtype)


class Shapes(NamedTuple):
    """Sizes from which a loss builds its trainable parts, measured on one probe batch."""

    student_widths: tuple[int, ...]  # of each matched layer
    teacher_widths: tuple[int, ...]
    heads: tuple[str, ...]  # names of the logits both models return
    attention_widths: tuple[tuple[int, int], ...] = ()  # (student's, teacher's) of each matched layer, where read
    pooling: str = "mean"  # how features became (n, d)
    examples: int = 0  # of the training data; 0 where they cannot be numbered
    labels: Tensor | None = None  # (examples,) classes, where each example has one
    maps: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()  # (student's, teacher's) shapes of an image's maps
    independent: bool = False  # whether several classes may hold at once
    scores: bool = False  # whether logits are scores, which nothing softens


class DistillationLoss(nn.Module, ABC):
    """(student, teacher, batch) -> {term: weighted scalar}; the loss owns its weights, projectors and memory.

    A subclass takes ``shapes: Shapes`` and its own options in ``__init__``, gives this class the projector of each
    matched layer, if it has any, and implements :meth:`terms`. Weights are applied inside, so that the terms of all
    losses sum to the training loss. Terms are computed in fp32 without autocast: an fp32 matrix product inside autocast
    would silently run in half precision. Projections of many samples follow the student's autocast, as its own layers
    do; those of few samples stay in fp32.
    """

    paper = ""  # which model cards cite
    reads_features = True  # False: the loss needs no matched layer
    reads_logits = True  # False: the teacher need not run beyond its last matched layer
    reads_attention = False  # True: the loss reads queries, keys and values of the matched layers
    reads_maps = False  # True: the loss reads the maps of all stages of an image classifier
    of_texts = False  # True: the loss compares the tokens of a text with each other
    needs_statistics = False  # True: the loss needs several samples, and may gather those of all processes
    gathers_in_terms = False  # True: what it gathers is made in `terms`; the features stay those of this process
    maps_to_teacher = False  # True: a projected feature has the direction of the teacher's, whatever the batch
    needs_fp32 = False  # True: its weights cannot be held in half precision, as FSDP2 and DeepSpeed do
    reads_index = False  # True: batches carry ``INDEX``, and ``Shapes.examples`` counts the training data

    epoch = 0  # of the training, from 0; set by the trainer
    gathers = False  # whether statistics are those of all processes' samples; set by `build_distiller`

    def __init__(self, projectors: Iterable[nn.Module] = ()):
        super().__init__()
        self.projectors = nn.ModuleList(projectors)

    def forward(
        self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted terms of a batch, scalars by name: samples gathered if ``gathers``, projected, compared in fp32.

        Args:
            student, teacher: representations of the same examples.
            batch: tensors of shape (examples, ...).
        """
        anchor = next(chain(student.logits.values(), student.features, student.attention, student.maps))
        if self.needs_statistics and not self.gathers_in_terms:
            student, teacher = [x._replace(features=tuple(map(self.gathered, x.features))) for x in (student, teacher)]
        device, features = anchor.device.type, student.features
        half = torch.is_autocast_enabled(device) and len(features) > 0 and len(features[0]) > FEW
        with torch.autocast(device, enabled=half):
            student = student._replace(projected=self.project((student if half else student.float()).features))
        with torch.autocast(device, enabled=False):
            return self.terms(student.float(), teacher.float(), batch)

    def check_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Raise :class:`UserError` where batches lack what the loss reads of them; called before training."""

    def project(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The student's features in the teacher's width, for :meth:`terms`; none where a loss does not project."""
        layers = zip(self.projectors, features, strict=True) if len(self.projectors) else ()
        return tuple(in_its_precision(projector, x) for projector, x in layers)

    def gathered(self, x: Tensor) -> Tensor:
        """The samples of all processes, not in half precision, if this loss gathers them; else ``x`` as it is."""
        return gather_samples(to_fp32(x)) if self.gathers else x

    @abstractmethod
    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of one batch, in fp32; each name becomes a key of the log."""


def check_positive(loss: str, **values: float) -> None:
    """Raise :class:`UserError` for an option of a loss that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{loss} with {name} {value}: expected a number above 0")


def check_layers(loss: str, shapes: Shapes) -> None:
    """Raise :class:`UserError` where a loss that compares layers has none."""
    if not (shapes.student_widths or shapes.attention_widths):
        raise UserError(f"{loss} without matched layers: set layer_map to even, last or a list of [teacher, student]")


def text_mask(representation: Representation) -> Tensor:
    """The (batch, length) mask of a representation of texts; :class:`UserError` where batches carry none."""
    if representation.mask is None:
        raise UserError("batches without attention_mask: expected one to tell texts apart; add it to the collator")
    return representation.mask


def mean(values: Iterable[Tensor]) -> Tensor:
    """Mean of scalars."""
    return torch.stack(list(values)).mean()
