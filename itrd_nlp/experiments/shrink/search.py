"""Which student to train next, and which to choose: pure functions of sizes and scores."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from itrd_nlp.utils.errors import UserError


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
    low, high = 0, len(names)
    for i, name in enumerate(names):
        trial = trials[name]
        if trial.kept is None and (trial.early or 0.0) >= goal.keep:
            high = min(high, i + 1)
        elif trial.kept is not None and meets(trial, goal):
            high = min(high, i)
        elif trial.kept is not None:
            low = max(low, i + 1)
    left = [name for name in names[low:high] if trials[name].kept is None]
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
    return max(trained, key=lambda name: (goal.fits(*trained[name][:2]), trained[name].kept or 0.0)), False
