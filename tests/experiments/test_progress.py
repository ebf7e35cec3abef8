"""How training shows its progress: a bar on a terminal, a line for each log elsewhere."""

import sys
from types import SimpleNamespace

import pytest
from accelerate import DistributedType, PartialState
from transformers import PrinterCallback, ProgressCallback

import tiny
from itrd_nlp import ITRDArguments
from itrd_nlp.experiments.train import LogLines, build_trainer

TASK = SimpleNamespace(
    train_dataset=tiny.rows(4),
    eval_dataset=None,
    collator=tiny.collate,
    processor=lambda model: None,
    compute_metrics=None,
)


def test_each_trainer_starts_accelerate_anew(tmp_path):
    """After a trainer with FSDP, accelerate's state would make no second one."""
    arguments = ITRDArguments(str(tmp_path), losses={}, use_cpu=True)
    build_trainer(tiny.bert(), None, arguments, TASK)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    assert build_trainer(tiny.bert(), None, arguments, TASK).accelerator.distributed_type == DistributedType.NO


@pytest.mark.parametrize("on_terminal", [True, False])
@pytest.mark.parametrize("disabled", [True, False])
def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch, tmp_path, on_terminal, disabled):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: on_terminal, write=len, flush=lambda: None))
    arguments = ITRDArguments(str(tmp_path), losses={}, use_cpu=True, disable_tqdm=disabled)
    callbacks = build_trainer(tiny.bert(), None, arguments, TASK).callback_handler.callbacks
    kinds = {type(callback) for callback in callbacks} & {ProgressCallback, PrinterCallback, LogLines}
    assert kinds == {ProgressCallback if on_terminal and not disabled else LogLines}


def test_a_log_is_a_message_not_output(capsys, caplog):
    caplog.set_level("INFO")
    logs = {"loss": 1.50004, "total_flos": 3}
    LogLines().on_log(None, SimpleNamespace(is_local_process_zero=True), None, logs)
    assert capsys.readouterr().out == "" and "'loss': '1.5'" in caplog.text and "total_flos" not in caplog.text
