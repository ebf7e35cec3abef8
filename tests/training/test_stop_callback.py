"""Which step is the last one after a signal, on one rank and on several."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from itrd_nlp.training import interruption, stop_callback
from itrd_nlp.training.interruption import Stopped, stoppable
from itrd_nlp.training.stop_callback import StopCallback

ARGS = SimpleNamespace(world_size=2, device="cpu")
STATE = SimpleNamespace(global_step=3, max_steps=9)


@pytest.fixture
def step():
    """A callback in training, and the control after a step of it."""
    callback = StopCallback()

    def ends():
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_step_end(ARGS, STATE, control)
        assert control.should_save == control.should_training_stop
        return control.should_training_stop

    return callback, ends


def test_a_signal_during_the_exchange_counts_after_the_next_step(step, monkeypatch):
    callback, ends = step
    signals = iter([signal.SIGTERM])

    def gather(number):
        for each in signals:
            os.kill(os.getpid(), each)
        return torch.stack([number, torch.zeros_like(number)])

    monkeypatch.setattr(stop_callback, "gather", gather)
    with pytest.raises(Stopped, match="after step 3 of 9"), stoppable() as request:
        callback.request = request
        request.can_wait = True
        assert not ends()
        assert request.number == signal.SIGTERM and ends()


def test_a_rank_s_own_signal_after_another_rank_s_is_no_second_one(step, monkeypatch):
    callback, ends = step
    monkeypatch.setattr(interruption, "ECHO", -1.0)
    monkeypatch.setattr(stop_callback, "gather", lambda number: torch.tensor([0, int(signal.SIGTERM)]))
    with pytest.raises(Stopped, match="after step 3 of 9"), stoppable() as request:
        callback.request = request
        request.can_wait = True
        assert ends()
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="^stopped by SIGTERM$"), stoppable() as request:
        callback.request = request
        request.can_wait = True
        assert ends()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("a second signal of its own did not stop it")
