"""One table of several pairs of networks, in the layout of papers: a row for each method, a column for each pair."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.recipes import read_reported
from itrd_nlp.experiments.report import group, mean_std, undistilled
from itrd_nlp.training.record import Record, best_epoch, origin
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tables import Table

Cells = dict[str, dict[str, float]]  # row -> pair -> score


def pairs_table(records: Sequence[Record], unfair: bool = False) -> Table:
    """Methods by pairs: mean ± standard deviation of the last epoch over seeds, beside what was reported.

    The last column is the relative improvement of ITRD over a row Y, the mean over the pairs that both have of
    (ITRD - Y) / (Y - KD), as in the ITRD paper.

    Args:
        records: of the recipes of one folder's table, e.g. ``cifar100/*``; of each pair, every method with the same
            seeds.
        unfair: also where records of a pair are of different teachers, students or data.

    Raises:
        UserError: records of other recipes, of several folders, or that do not go together.
    """
    folders = {PurePosixPath(record.recipe).parent.as_posix() for record in records}
    if len(folders) > 1:
        raise UserError(f"records of {', '.join(sorted(folders))}: expected one folder's recipes in a table of pairs")
    pairs, reported, (over, base) = read_reported(folders.pop())
    ours, shown = _measured(records, pairs, unfair)
    known = [pair for pair in pairs if any(pair in cells for cells in ours.values())]
    if not known:
        raise UserError(f"records of {records[0].recipe}: expected recipes of the pairs {', '.join(pairs)}")
    lines = []
    for label in dict.fromkeys([*reported, *ours]):
        if label in ours:
            gain = relative(ours, over, label, base)
            lines.append([label, *(shown[label].get(pair, "") for pair in known), gain])
        if label in reported:
            cells = {pair: f"{reported[label][pair]:.2f}" for pair in known if pair in reported[label]}
            gain = relative(reported, over, label, base)
            lines.append([f"{label}, reported", *(cells.get(pair, "") for pair in known), gain])
    seeds = sorted({record.seed for record in records})
    several = "mean ± standard deviation over seeds" if len(seeds) > 1 else "seed"
    caption = f"Last epoch, {several} {', '.join(map(str, seeds))} ({origin(records)}):"
    return Table(caption, ["", *known, f"{over} over it, %"], lines)


def _measured(records: Sequence[Record], pairs: Sequence[str], unfair: bool) -> tuple[Cells, dict[str, dict[str, str]]]:
    """Row -> pair -> mean over seeds, and the same as a table shows it."""
    means: Cells = {}
    shown: dict[str, dict[str, str]] = {}
    for pair in pairs:
        inside = [record for record in records if _belongs(record.recipe, pair, pairs)]
        if not inside:
            continue
        if not unfair:
            check_same(inside)
        rows = {"teacher": (inside[:1], "teacher"), "undistilled": (undistilled(inside), "baseline")}
        rows |= {label: (some, "student") for label, some in group(inside).items()}
        for label, (some, role) in rows.items():
            if not some:
                continue
            values = [record.metrics[role][record.metric_names[-1]] for record in some]
            best = best_epoch(some, role)
            means.setdefault(label, {})[pair] = float(np.mean(values))
            shown.setdefault(label, {})[pair] = mean_std(values) + ("" if best is None else f" (best {best:.2f})")
    return means, shown


def relative(cells: Mapping[str, Mapping[str, float]], over: str, row: str, base: str) -> str:
    """Relative improvement in percent over the pairs that the three rows have and where ``row`` is above ``base``.

    Empty where there are none.

    Example:
        >>> relative({"KD": {"a": 70.0}, "CRD": {"a": 72.0}, "ITRD": {"a": 73.0}}, "ITRD", "CRD", "KD")
        '+50.0 (1 pair)'
    """
    if row in (over, base, "teacher", "undistilled") or not {over, row, base} <= {*cells}:
        return ""
    both = [p for p in cells[row] if p in cells[over] and p in cells[base] and cells[row][p] > cells[base][p]]
    gains = [(cells[over][p] - cells[row][p]) / (cells[row][p] - cells[base][p]) for p in both]
    return f"{100 * np.mean(gains):+.1f} ({len(both)} pair{'s' if len(both) > 1 else ''})" if both else ""


def _belongs(recipe: str, pair: str, pairs: Sequence[str]) -> bool:
    """Whether a recipe ``<pair>-<method>`` is of this pair; the longest that fits counts."""
    name = PurePosixPath(recipe).name
    return pair == max((p for p in pairs if name.startswith(f"{p}-")), key=len, default="")
