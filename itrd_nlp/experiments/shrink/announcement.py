"""What a search says before it trains: its students, what each costs, and about how long all trainings take."""

import logging
from collections.abc import Mapping, Sequence

from itrd_nlp.experiments.dry_run import Plan, dry_run, duration
from itrd_nlp.experiments.shrink.deployment import Cost
from itrd_nlp.experiments.shrink.request import SHORT_SHARE, Request
from itrd_nlp.experiments.shrink.search import Candidate

logger = logging.getLogger(__name__)


def announce(
    request: Request, candidates: Mapping[str, Candidate], costs: Mapping[str, Cost], allowed: Sequence[str]
) -> None:
    """Say what will be tried, and about how long it takes unless it has been trained.

    Args:
        candidates, costs: by name.
        allowed: names of those within the limits.
    """
    lines = [f"[shrink] {request.model} for task {request.task}: {len(costs)} students"]
    for name, cost in costs.items():
        skipped = "" if name in allowed else ", beyond the limits: not trained"
        lines.append(f"  {name}: {cost.parameters:,} parameters, {cost.mib:.1f} MiB, {cost.speedup:.1f} x{skipped}")
    logger.info("\n".join(lines))
    first, runs = "short" if len(allowed) > 1 else "whole", request.output / "runs"
    if any(not (runs / name / first / "record.json").is_file() for name in allowed):
        words = request.student(candidates[allowed[0]], init="random")
        # the folder is not a run's own, and without the student that an earlier search chose
        plan = dry_run(*request.arguments(*words, f"--output_dir={runs}"))
        logger.info(f"[shrink] about {duration(_estimate(plan, costs, allowed))} (h:mm:ss) of training in all")


def _estimate(plan: Plan, costs: Mapping[str, Cost], names: Sequence[str]) -> float:
    """Seconds of all trainings: the short ones, and about log2 of their number whole ones.

    A training's time is taken to be proportional to the student's latency; ``plan`` measured that of the first one.
    """
    rows, first = plan.rows, costs[names[0]].ms
    steps = rows["student"].steps * rows["student"].step_seconds / first  # seconds for each ms of latency
    ms = [costs[name].ms for name in names]
    whole = (len(names).bit_length() + 1) * sum(ms) / len(ms)  # and the one without distillation
    caching = rows["student"].seconds - rows["student"].steps * rows["student"].step_seconds
    short = SHORT_SHARE * sum(ms) if len(names) > 1 else 0.0
    return rows["teacher"].seconds + caching + steps * (short + whole)
