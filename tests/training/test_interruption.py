"""SIGTERM and Ctrl-C end a run where it can be continued."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from experiments.test_run import SMALL
from itrd_nlp.cli.main import main
from itrd_nlp.training import interruption
from itrd_nlp.training.checkpoint import last_checkpoint
from itrd_nlp.training.interruption import Stopped, stoppable
from itrd_nlp.training.trainer import ITRDTrainer

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)
BOTH = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]  # 128 and the signal's number, as of a shell


def start(folder):
    """The exit code of the same small run in a folder."""
    steps = {"max_steps": 6, "save_strategy": "no", "eval_strategy": "epoch", "baseline": False, "latency": False}
    (folder / "recipe.yaml").write_text(json.dumps({**SMALL, **steps}))
    places = ["--output_dir", str(folder / "out"), "--shared_dir", str(folder / "shared")]
    return main(["distill", str(folder / "recipe.yaml"), *places])


@pytest.fixture
def distil(tmp_path, capfd):
    """Starts the run again; returns its exit code and what it said."""
    return lambda: (start(tmp_path), capfd.readouterr())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder) == 0
    return (folder / "out" / "student" / "model.safetensors").read_bytes()


def send(monkeypatch, numbers, step, method="training_step"):
    """Signals to this process in the student's so-many-th training step."""
    original, calls = getattr(ITRDTrainer, method), []

    def sending(self, *args, **kwargs):
        if self.distils:
            calls.append(1)
            if len(calls) == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ITRDTrainer, method, sending)


@pytest.mark.promise("stopped by a signal")
@pytest.mark.parametrize(
    "step,number,code",  # 5 steps an epoch
    [
        pytest.param(step, *both, marks=[] if step == 3 else pytest.mark.slow)
        for step, both in itertools.product((1, 3, 6), BOTH)
    ],
)
def test_training_ends_its_step_saves_and_goes_on(distil, whole, tmp_path, monkeypatch, number, code, step):
    send(monkeypatch, [number], step)
    found, said = distil()
    name = signal.Signals(number).name
    assert found == code and f"itrd: stopped by {name} after step {step} of 6; the same command continues" in said.err
    assert f"[stop] {name}: a checkpoint, then the end" in said.err
    assert last_checkpoint(tmp_path / "out" / "student").name == f"checkpoint-{step}"
    assert not (tmp_path / "out" / "record.json").exists()
    assert distil()[0] == 0
    assert (tmp_path / "out" / "student" / "model.safetensors").read_bytes() == whole


@pytest.mark.promise("stopped by a signal")
@pytest.mark.parametrize("number,code", BOTH)
def test_a_second_signal_stops_at_once(distil, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(interruption, "ECHO", -1.0)
    send(monkeypatch, [number, number], 3)
    found, said = distil()
    assert found == code and "the same command continues" in said.err
    assert last_checkpoint(tmp_path / "out" / "student") is None
    assert distil()[0] == 0


@pytest.mark.promise("stopped by a signal")
def test_a_launcher_repeats_the_terminals_signal(distil, tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGINT, signal.SIGINT, signal.SIGTERM], 3)
    code, said = distil()
    assert code == 130 and "stopped by SIGINT after step 3 of 6" in said.err
    assert last_checkpoint(tmp_path / "out" / "student").name == "checkpoint-3"


@pytest.mark.promise("stopped by a signal")
def test_while_the_trained_model_is_written_it_waits(distil, tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGTERM], 1, method="save_model")
    code, said = distil()
    assert code == 143 and "itrd: stopped by SIGTERM; the same command continues" in said.err
    assert (tmp_path / "out" / "student" / "finished.json").is_file()
    assert distil()[0] == 0


@pytest.mark.promise("stopped by a signal")
@pytest.mark.parametrize("number,code", BOTH)
def test_outside_of_training_it_stops_at_once(distil, monkeypatch, number, code):
    send(monkeypatch, [number], 1, method="get_train_dataloader")
    found, said = distil()
    assert found == code and "the same command continues" in said.err
    assert distil()[0] == 0


class Interrupted(io.RawIOBase):
    """A file whose writing is interrupted by a signal, as printing is."""

    def writable(self):
        return True

    def write(self, content):
        os.kill(os.getpid(), signal.SIGTERM)
        return len(content)


def test_a_signal_in_the_middle_of_printing_is_noted_and_told(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Interrupted()), write_through=True))
    with pytest.raises(Stopped), stoppable() as request:
        request.can_wait = True
        print("x", flush=True)
        assert request.number == signal.SIGTERM
    assert "[stop] SIGTERM: a checkpoint, then the end" in capfd.readouterr().err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number, _ in BOTH]
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number, _ in BOTH] == before


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_on_sigterm():
    with stoppable() as request:
        request.can_wait = True
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.5)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
    assert worker.exitcode == -signal.SIGTERM and not request.number
