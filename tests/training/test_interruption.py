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
from pathlib import Path

import pytest
import torch

import tiny
from experiments.test_run import SMALL
from forked import run_code
from itrd_nlp.cli.main import main
from itrd_nlp.training import interruption
from itrd_nlp.training.checkpoint import last_checkpoint
from itrd_nlp.training.interruption import Stopped, stoppable, stoppable_training
from itrd_nlp.training.trainer import ITRDTrainer
from training.test_trainer import trainer, weights

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)
BOTH = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]  # 128 and the signal's number, as of a shell


def start(folder):
    """The exit code of the same small run in a folder."""
    steps = {"max_steps": 6, "save_strategy": "no", "eval_strategy": "epoch", "baseline": False}
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


SCRIPT = """
import os, subprocess, sys
sys.path.insert(0, {tests!r})
import torch
from transformers import TrainerCallback
from training.test_trainer import trainer

class Signal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            kill = ["kill", "-TERM", "--", f"-{{os.getpgrp()}}"]
            subprocess.run(kill, start_new_session=True)  # from elsewhere, to all processes of this rank

os.setpgrp()  # a launcher signals the processes of a rank, the workers among them
torch.set_num_threads(1)
torch.manual_seed(0)
trainer({folder!r}, callbacks=[Signal()], max_steps=12, dataloader_num_workers={workers}).train()
print("trained to its end")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_script_around_the_trainer_saves_a_checkpoint_and_goes_on(tmp_path, workers):
    """In the middle of an epoch of 8 steps; the script ends as SIGTERM ends it."""
    whole = trainer(tmp_path / "whole", max_steps=12)
    whole.train()
    places = {"tests": str(Path(__file__).parents[1]), "folder": str(tmp_path / "out")}
    done = run_code(SCRIPT.format(**places, workers=workers))
    assert done.returncode == -signal.SIGTERM and "trained to its end" not in done.stdout
    assert "[stop] SIGTERM: a checkpoint, then the end" in done.stderr and "Traceback" not in done.stderr
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-5"
    again = trainer(tmp_path / "out", max_steps=12)
    assert again.train(resume_from_checkpoint=True).global_step == 12
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(whole).items())


def test_a_better_checkpoint_does_not_replace_that_of_the_signal(tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGTERM], 3)
    scores = iter([0.9, 0.1])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "save_total_limit": 1}
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    data = {"eval_dataset": tiny.rows(8), "compute_metrics": lambda _: {"f1": next(scores)}}
    made = trainer(tmp_path, **data, **steps, **best)
    with pytest.raises(Stopped, match="^stopped by SIGTERM after step 3 of 4$"), stoppable():
        made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3" and made.args.save_total_limit == 1


def test_a_worse_score_in_the_step_of_the_signal_keeps_no_checkpoint_away(tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGTERM], 3)
    scores = iter([0.9, 0.5, 0.1])
    best = {"save_strategy": "best", "metric_for_best_model": "f1", "eval_strategy": "steps", "eval_steps": 1}
    data = {"eval_dataset": tiny.rows(8), "compute_metrics": lambda _: {"f1": next(scores)}}
    with pytest.raises(Stopped, match="after step 3 of 4"), stoppable():
        trainer(tmp_path, **data, **best).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_a_handler_of_the_script_itself_is_left_alone(tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGTERM], 2)
    seen = []

    def own(number, frame):
        seen.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        assert trainer(tmp_path).train().global_step == 4
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] and last_checkpoint(tmp_path) is None


def test_ctrl_c_in_a_script_is_a_keyboard_interrupt_at_once(tmp_path, monkeypatch):
    send(monkeypatch, [signal.SIGINT], 2)
    made = trainer(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert made.state.global_step == 1 and last_checkpoint(tmp_path) is None


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    made, before = trainer(tmp_path), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=made.train)
    thread.start()
    thread.join(60)
    assert made.state.global_step == 4 and signal.getsignal(signal.SIGTERM) == before


def test_after_the_last_step_a_signal_waits_for_what_a_command_writes():
    """Training has ended: the block around writes the model before it stops."""
    with pytest.raises(Stopped, match="^stopped by SIGTERM$"), stoppable() as request:
        with stoppable_training() as training:
            training.can_wait = True
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGTERM
    with pytest.raises(Stopped, match="^stopped by SIGTERM after step 3$"), stoppable():
        with stoppable_training() as training:
            training.can_wait = True
            os.kill(os.getpid(), signal.SIGTERM)
            training.reached = " after step 3"
        raise AssertionError("the block went on")
