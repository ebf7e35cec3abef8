"""One table of several pairs of networks, in the layout of papers: a row for each method, a column for each pair."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.recipes import read_reported
from itrd_nlp.experiments.report import Method, baselines_of, mean_std, methods_of
from itrd_nlp.training.record import Record, best_epoch, origin
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tables import Table

Scores = dict[str, dict[str, float]]  # row -> pair -> score


def pairs_table(records: Sequence[Record], unfair: bool = False) -> Table:
    """Methods by pairs: mean ± standard deviation of the last epoch over seeds, beside what was reported.

    The last column is the relative improvement of ITRD over a row Y, the mean over the pairs that both have of
    (ITRD - Y) / (Y - KD), as in the ITRD paper.

    Args:
        records: of the recipes of one folder, e.g. ``cifar100/*``; every method of a pair has the same seeds.
        unfair: allow records of a pair with different teachers, students or data.

    Raises:
        UserError: records of several folders, of recipes outside such a table, or that cannot stand in one table.
    """
    folders = {PurePosixPath(record.recipe).parent.as_posix() for record in records}
    if len(folders) > 1:
        raise UserError(f"records of {', '.join(sorted(folders))}: expected one folder's recipes in a table of pairs")
    pairs, reported, (over, base) = read_reported(folders.pop())
    measured, cells = _measured(records, pairs, unfair)
    columns = [pair for pair in pairs if any(pair in row for row in measured.values())]
    if not columns:
        raise UserError(f"records of {records[0].recipe}: expected recipes of the pairs {', '.join(pairs)}")
    rows = []
    for label in dict.fromkeys([*reported, *measured]):
        if label in measured:
            texts = [cells[label].get(pair, "") for pair in columns]
            rows.append([label, *texts, relative(measured, over, label, base)])
        if label in reported:
            texts = [f"{reported[label][pair]:.2f}" if pair in reported[label] else "" for pair in columns]
            rows.append([f"{label}, reported", *texts, relative(reported, over, label, base)])
    seeds = sorted({record.seed for record in records})
    several = "mean ± standard deviation over seeds" if len(seeds) > 1 else "seed"
    caption = f"Last epoch, {several} {', '.join(map(str, seeds))} ({origin(records)}):"
    return Table(caption, ["", *columns, f"{over} over it, %"], rows)


def _measured(
    records: Sequence[Record], pairs: Sequence[str], unfair: bool
) -> tuple[Scores, dict[str, dict[str, str]]]:
    """Row -> pair -> mean over seeds, and the same as text, with the spread and the best epoch."""
    means: Scores = {}
    texts: dict[str, dict[str, str]] = {}
    for pair in pairs:
        of_pair = [record for record in records if _pair_of(record.recipe, pairs) == pair]
        if not of_pair:
            continue
        if not unfair:
            check_same(of_pair)
        methods = methods_of(of_pair)
        for method in (Method("teacher", "teacher", of_pair[:1]), *baselines_of(methods).values(), *methods):
            best = best_epoch(method.records, method.role)
            text = mean_std(method.scores()) + ("" if best is None else f" (best {best:.2f})")
            means.setdefault(method.label, {})[pair] = float(np.mean(method.scores()))
            texts.setdefault(method.label, {})[pair] = text
    return means, texts


def relative(scores: Mapping[str, Mapping[str, float]], over: str, row: str, base: str) -> str:
    """Mean relative improvement in percent, over the pairs that all three rows have and where ``row`` beats ``base``.

    Empty where there is no such pair.

    Example:
        >>> relative({"KD": {"a": 70.0}, "CRD": {"a": 72.0}, "ITRD": {"a": 73.0}}, "ITRD", "CRD", "KD")
        '+50.0 (1 pair)'
    """
    if row in (over, base, "teacher", "undistilled", "untrained") or not {over, row, base} <= {*scores}:
        return ""
    shared = {*scores[row]} & {*scores[over]} & {*scores[base]}
    best, this, lowest = (np.array([scores[name][pair] for pair in sorted(shared)]) for name in (over, row, base))
    higher = this > lowest
    gains = (best - this)[higher] / (this - lowest)[higher]
    return f"{100 * gains.mean():+.1f} ({len(gains)} pair{'s' if len(gains) > 1 else ''})" if len(gains) else ""


def _pair_of(recipe: str, pairs: Sequence[str]) -> str:
    """The pair of a recipe ``<pair>-<method>``: the longest one that its name starts with; "" for another recipe."""
    name = PurePosixPath(recipe).name
    return max((pair for pair in pairs if name.startswith(f"{pair}-")), key=len, default="")
