"""Time of forward passes, measured in turns so that a busy machine slows every model alike."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm


def latency(
    models: Mapping[str, PreTrainedModel],
    example: Callable[[int], Mapping[str, torch.Tensor]],
    batches: Sequence[int] = (1, 32),
    repeats: int = 10,
    budget: float = 20.0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Forward time on the CPU in fp32, the models taking turns so that a busy machine hurts them alike.

    Args:
        models: name -> model; copied, and left where and as they are.
        example: makes a batch of so many texts or images.
        batches: how many of them a forward.
        repeats: timed forwards of each model and batch, after two that are not timed.
        budget: seconds after which a batch size stops early, with at least three repeats.

    Returns:
        name -> batch -> ``{"median": ms, "spread": half the interquartile range in ms, "n": repeats}``.
    """
    copies = {name: copy.deepcopy(model).to("cpu", torch.float32).eval() for name, model in models.items()}
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for batch in batches:
        given = example(batch)
        calls = {name: partial(model, **given) for name, model in copies.items()}
        for name, summary in forward_times(calls, repeats, budget).items():
            result[name][str(batch)] = summary
    return result


def forward_times(
    calls: Mapping[str, Callable[[], Any]], repeats: int = 10, budget: float = 20.0
) -> dict[str, dict[str, float]]:
    """Time of each forward, in turns; arguments and what is returned are those of :func:`latency`, for one batch."""
    with torch.inference_mode():
        times = take_turns(calls, repeats, warmup=2, budget=budget, title="Measuring latency")
    made = {}
    for name, seconds in times.items():
        low, median, high = [1000 * value for value in statistics.quantiles(seconds, n=4)]
        made[name] = {"median": median, "spread": (high - low) / 2, "n": len(seconds)}
    return made


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    budget: float = math.inf,
    title: str | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call; they take turns, so that a busy machine hurts them alike.

    Args:
        warmup: turns that are not timed.
        budget: seconds after which it stops early, with at least three repeats.
        title: of a progress bar; None shows none.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for repeat in tqdm(range(warmup + repeats), desc=title, leave=False, disable=title is None):
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                times[name].append(time.perf_counter() - before)
        if repeat >= warmup + 2 and time.perf_counter() - started > budget:
            break
    return times


def texts(vocabulary: int, length: int, count: int) -> dict[str, torch.Tensor]:
    """A batch of ``count`` texts of ``length`` tokens, without padding."""
    ids = torch.arange(count * length).reshape(count, length) % (vocabulary - 1) + 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
