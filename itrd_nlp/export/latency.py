"""Times of forward passes, measured in turns so that a busy machine slows every model alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from itrd_nlp.utils.tokenizers import table_rows

BYTES = 256


def forward_times(
    calls: Mapping[str, Callable[[], Any]], repeats: int = 10, budget: float = 20.0, pause: float = 0.0
) -> dict[str, dict[str, float]]:
    """:func:`summary` of the times of each forward pass.

    Args:
        repeats: timed forwards of each, after two that are not timed.
        budget, pause: of :func:`take_turns`.
    """
    with torch.inference_mode():
        times = take_turns(calls, repeats, warmup=2, budget=budget, pause=pause, title="Measuring latency")
    return {name: summary(seconds) for name, seconds in times.items()}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """``median`` and ``spread``, half the interquartile range, in ms; and ``n``, how many times there are."""
    low, median, high = [1000 * value for value in statistics.quantiles(seconds, n=4)]
    return {"median": median, "spread": (high - low) / 2, "n": len(seconds)}


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 1,
    budget: float = math.inf,
    pause: float = 0.0,
    title: str | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, for ``repeats`` turns.

    Args:
        warmup: turns before, which are not timed.
        budget: seconds after which it stops early, with at least three timed turns.
        pause: seconds before each call, in which idle threads of the one before go to sleep.
        title: of a progress bar; None shows none.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in tqdm(range(warmup + repeats), desc=title, leave=False, disable=title is None):
        for name, call in calls.items():
            if pause:
                time.sleep(pause)
            before = time.perf_counter()
            call()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - before)
        if turn >= warmup + 2 and time.perf_counter() - started > budget:
            break
    return times


def texts_for(models: Iterable[PreTrainedModel], length: int, count: int) -> dict[str, torch.Tensor]:
    """A batch of ``count`` texts of ``length`` tokens, without padding, that all models take.

    Token ids are below the smallest of their tables of embeddings; models without one read characters.
    """
    vocabulary = min((rows for rows in map(table_rows, models) if rows is not None), default=BYTES)
    ids = torch.arange(count * length).reshape(count, length) % (vocabulary - 1) + 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
