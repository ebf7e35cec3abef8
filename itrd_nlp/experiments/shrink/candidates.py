"""The students that a search tries: fewer layers, a smaller vocabulary, a narrower network."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from itrd_nlp.models.width import widths_of
from itrd_nlp.utils.errors import UserError

LAYER_SHARES = (2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6)  # of the teacher's layers
NARROW = 2 / 3  # of the teacher's width
PIECES = 8000  # of a cut vocabulary


class Candidate(NamedTuple):
    """One student: what is cut from its teacher. None keeps what the teacher has."""

    layers: int
    hidden_size: int | None = None
    vocabulary: int | None = None

    @property
    def name(self) -> str:
        """A short name, which is also that of its folders.

        Example:
            >>> Candidate(3, 256, 8000).name
            'l3-h256-v8000'
        """
        cuts = {"l": self.layers, "h": self.hidden_size, "v": self.vocabulary}
        return "-".join(f"{letter}{size}" for letter, size in cuts.items() if size is not None)

    def words(self, config: PretrainedConfig, **fields: Any) -> list[str]:
        """The words of a command line that make this student; ``fields`` are added to them."""
        spec = {"from": "teacher", "layers": f"first:{self.layers}", **fields}
        if self.vocabulary is not None:
            spec["vocabulary"] = self.vocabulary
        if self.hidden_size is not None:
            spec["hidden_size"] = self.hidden_size
            widths = widths_of(config)
            spec["num_attention_heads"] = self.hidden_size * widths.heads // widths.hidden
            if widths.inner:
                spec["intermediate_size"] = _scaled(widths.inner, self.hidden_size / widths.hidden, 8)
        return [f"--student={json.dumps(spec)}"]


def ladder(
    config: PretrainedConfig,
    layers: Sequence[int] | None = None,
    hidden_sizes: Sequence[int] | None = None,
    vocabularies: Sequence[int] | None = None,
) -> list[Candidate]:
    """The students to try, each once.

    By default these are all numbers of layers with a small vocabulary; half of the layers with the whole vocabulary,
    which shows what the vocabulary is worth; and a third and a half of them with a narrower network. What a user lists
    replaces that: every combination is tried.

    Args:
        config: of the teacher.
        layers: numbers of layers.
        hidden_sizes: widths; one that is the teacher's keeps it.
        vocabularies: numbers of pieces; 0 keeps them all.

    Raises:
        UserError: sizes that the teacher does not have.
    """
    total, (width, heads, _) = config.num_hidden_layers, widths_of(config)
    _check("layers", layers or (), 1, total)
    head = width // heads
    _check("hidden_sizes", hidden_sizes or (), head, width, head)
    _check("vocabularies", vocabularies or (), 0, None)
    counts = _distinct(layers or (max(1, round(share * total)) for share in LAYER_SHARES))
    small = PIECES if config.vocab_size > PIECES else 0
    pieces = [size or None for size in ((small,) if vocabularies is None else vocabularies)]
    if hidden_sizes is not None or vocabularies is not None:
        widths = [None if size == width else size for size in hidden_sizes or (width,)]
        return _distinct(Candidate(n, h, v) for n in counts for h in widths for v in pieces)
    narrow = _scaled(width, NARROW, head)
    middle = _distinct(max(1, round(total / n)) for n in (2, 3))
    candidates = [Candidate(n, None, small or None) for n in counts]
    candidates += [Candidate(n, None, None) for n in middle[:1] if n in counts]
    if narrow < width:
        candidates += [Candidate(n, narrow, small or None) for n in middle if n in counts]
    return _distinct(candidates)


def _scaled(size: int, share: float, multiple: int) -> int:
    """A share of a size, as the nearest multiple."""
    return max(multiple, round(size * share / multiple) * multiple)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _check(option: str, values: Sequence[int], least: int, most: int | None, multiple: int = 1) -> None:
    for value in values:
        if value < least or (most is not None and value > most) or value % multiple:
            limits = f"{least} or more" if most is None else f"{least} to {most}"
            heads = f", a multiple of {multiple}, the size of a head" if multiple > 1 else ""
            raise UserError(f"--{option} {value}: expected {limits}{heads}")
