"""The students that a search tries, which of them to train next, and which to choose."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from itrd_nlp.models.width import widths_of
from itrd_nlp.utils.errors import UserError

LAYER_SHARES = (2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6)  # of the teacher's layers
NARROW = {2: 2 / 3, 3: 1 / 2, 6: 1 / 3}  # one layer in so many is kept -> share of the teacher's width
LEAST_WIDTH = 256  # below which a third of the width goes at most
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
    small: int = PIECES,
) -> list[Candidate]:
    """The students to try, each once.

    By default: each of ``LAYER_SHARES`` with a small vocabulary; half of the layers with the whole vocabulary, to show
    what the vocabulary is worth; and a half, a third and a sixth of the layers with a narrower network, narrower for
    fewer layers. Listed widths or vocabularies replace these: every combination is tried. Listed layers alone are tried
    with the small vocabulary, with the whole one, and with a narrower network.

    Args:
        config: of the teacher.
        layers: numbers of layers.
        hidden_sizes: widths; one that is the teacher's keeps it.
        vocabularies: numbers of tokens; 0, or as many as the teacher has, keeps them all.
        small: tokens of the small vocabulary; with 0, none is tried.

    Raises:
        UserError: sizes that the teacher does not have.
    """
    total, (width, heads, _) = config.num_hidden_layers, widths_of(config)
    _check("layers", layers or (), 1, total)
    head = width // heads
    _check("hidden_sizes", hidden_sizes or (), head, width, head)
    _check("vocabularies", vocabularies or (), 0, None)
    counts = _distinct(layers or (max(1, round(share * total)) for share in LAYER_SHARES))
    small = small if getattr(config, "vocab_size", 0) > small else 0
    whole = getattr(config, "vocab_size", math.inf)
    pieces = [size if 0 < size < whole else None for size in ((small,) if vocabularies is None else vocabularies)]
    if hidden_sizes is not None or vocabularies is not None:
        widths = [None if size == width else size for size in hidden_sizes or (width,)]
        return _distinct(Candidate(n, h, v) for n in counts for h in widths for v in pieces)
    if layers:
        shares = dict.fromkeys(counts, NARROW[2])  # number of layers -> share of the width
        whole_vocabulary = counts
    else:
        shares = {}
        for n, share in NARROW.items():
            shares.setdefault(max(1, round(total / n)), share)
        whole_vocabulary = [*shares][:1]
    candidates = [Candidate(n, None, small or None) for n in counts]
    candidates += [Candidate(n, None, None) for n in whole_vocabulary]
    for n, share in shares.items():
        narrow = _scaled(max(width * share, min(LEAST_WIDTH, width * NARROW[2])), 1, head)
        candidates += [Candidate(n, narrow, small or None)] if narrow < width else []
    return _distinct(candidates)


def _scaled(size: float, share: float, multiple: int) -> int:
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


class Goal(NamedTuple):
    """What was asked for.

    Attributes:
        keep: share of the teacher's score, above 0 and at most 1.
        max_mib: MiB of all files that are needed to run the student; None: any.
        min_speedup: time of the teacher in PyTorch fp32 over that of the student in ONNX int8; None: any.
    """

    keep: float = 0.97
    max_mib: float | None = None
    min_speedup: float | None = None

    def check(self) -> None:
        """Raise :class:`UserError` where a value is out of range."""
        if not 0 < self.keep <= 1:
            raise UserError(f"--keep {self.keep:g}: expected a share of the teacher's score, above 0 and at most 1")
        for name in ("max_mib", "min_speedup"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} {value:g}: expected a number above 0")

    def fits(self, mib: float, speedup: float) -> bool:
        """Whether a student of this size and speed is allowed."""
        return (self.max_mib is None or mib <= self.max_mib) and (
            self.min_speedup is None or speedup >= self.min_speedup
        )


class Trial(NamedTuple):
    """What is known of one student."""

    mib: float
    speedup: float
    early: float | None = None  # share of the teacher's score after the short training
    kept: float | None = None  # after the whole one, deployed


def frontier(trials: Mapping[str, Trial]) -> list[str]:
    """The students after the short training that no other beats at no greater size, from small to large.

    Example:
        >>> frontier({"a": Trial(5, 9, early=0.8), "b": Trial(6, 8, early=0.7), "c": Trial(9, 4, early=0.9)})
        ['a', 'c']
    """
    names: list[str] = []
    best = float("-inf")
    for name in sorted(trials, key=lambda name: (trials[name].mib, -(trials[name].early or 0.0), name)):
        early = trials[name].early
        if early is not None and early > best:
            names.append(name)
            best = early
    return names


def next_student(names: Sequence[str], trials: Mapping[str, Trial], goal: Goal) -> str | None:
    """The next student to train to the end: the middle one of those that can still be the smallest that keeps enough.

    A student that keeps enough makes larger ones needless, also where the short training was enough for it; one that
    does not makes smaller ones hopeless.

    Args:
        names: of the :func:`frontier`.

    Returns:
        A name; None once nothing is left.
    """
    low, sizes = 0, []  # of students that keep enough
    for i, name in enumerate(names):
        trial = trials[name]
        keeps_enough = (trial.early or 0.0) >= goal.keep if trial.kept is None else meets(trial, goal)
        if keeps_enough:
            sizes.append(trial.mib)
        elif trial.kept is not None:
            low = i + 1
    most = min(sizes, default=math.inf)
    left = [name for name in names[low:] if trials[name].kept is None and trials[name].mib <= most]
    return left[len(left) // 2] if left else None


def meets(trial: Trial, goal: Goal) -> bool:
    """Whether a student that was trained to the end is what was asked for."""
    return trial.kept is not None and trial.kept >= goal.keep and goal.fits(trial.mib, trial.speedup)


def choose(trials: Mapping[str, Trial], goal: Goal) -> tuple[str, bool]:
    """The smallest student that keeps enough, or else the one that keeps most; and whether it is what was asked for."""
    trained = {name: trial for name, trial in trials.items() if trial.kept is not None}
    enough = [name for name, trial in trained.items() if meets(trial, goal)]
    if enough:
        return min(enough, key=lambda name: (trained[name].mib, name)), True

    def nearness(name: str) -> tuple[bool, float]:
        trial = trained[name]
        return goal.fits(trial.mib, trial.speedup), trial.kept or 0.0

    return max(trained, key=nearness), False


def reason(name: str, names: Sequence[str], trials: Mapping[str, Trial], goal: Goal, chosen: str) -> str:
    """Why a student was chosen, or trained no further.

    Args:
        names: of the :func:`frontier`.
    """
    if name == chosen:
        return "chosen"
    if name not in trials:
        return "beyond the limits: not trained"
    trial = trials[name]
    if name not in names:
        better = next(other for other in names if (trials[other].early or 0.0) >= (trial.early or 0.0))
        return f"{better} is {'better' if trials[better].early != trial.early else 'as good'} and no larger"
    if trial.kept is not None:
        return "keeps enough, but is larger" if trial.kept >= goal.keep else "keeps too little"
    return "larger than needed" if trial.mib > trials[chosen].mib else "a larger one keeps too little"
