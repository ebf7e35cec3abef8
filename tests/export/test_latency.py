"""Size and latency of models."""

from functools import partial
from types import SimpleNamespace

import pytest

import tiny
from itrd_nlp.export.latency import forward_times, take_turns
from itrd_nlp.utils.modeling import parameter_count, size_mib


def test_sizes_are_those_of_the_saved_file(tmp_path):
    model = tiny.bert()
    model.save_pretrained(tmp_path)
    on_disk = (tmp_path / "model.safetensors").stat().st_size / 2**20
    assert size_mib(model) <= on_disk < size_mib(model) + 0.05
    assert parameter_count(model) == sum(p.numel() for p in model.parameters())


def test_latency_is_median_and_half_the_interquartile_range_without_the_first_two(monkeypatch):
    ticks, now = iter([9000.0, 8000.0, 1.0, 2.0, 3.0, 5.0, 9.0]), [0.0]
    monkeypatch.setattr("itrd_nlp.export.latency.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def forward():
        now[0] += next(ticks) / 1000

    found = forward_times({"model": forward}, repeats=5)["model"]
    assert found == pytest.approx({"median": 3.0, "spread": (7.0 - 1.5) / 2, "n": 5})  # quartiles at ranks 1.5 and 4.5


def test_calls_take_turns_and_stop_when_the_budget_is_spent(monkeypatch):
    called, now = [], [0.0]
    monkeypatch.setattr("itrd_nlp.export.latency.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call(name, seconds):
        called.append(name)
        now[0] += seconds

    calls = {"a": partial(call, "a", 1.0), "b": partial(call, "b", 2.0)}
    assert take_turns(calls, repeats=9, budget=5.0) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert called == ["a", "b"] * 4  # the first turn is not timed
