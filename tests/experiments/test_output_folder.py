"""Locks of folders, and digests of data and weights."""

import multiprocessing
import os
import socket
import threading

import pytest
import torch
from datasets import concatenate_datasets

import tiny
from itrd_nlp.experiments.output_folder import OWNER, arguments_of, locked
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import BusyError, UserError
from itrd_nlp.utils.hashing import data_digest, weights_digest


def test_rows_have_one_digest_however_they_were_put_together():
    rows = tiny.rows(30)
    parts = concatenate_datasets([rows.select(range(7)), rows.select(range(7, 30))])
    shuffled = rows.select([1, 0, *range(2, 30)])
    assert data_digest(parts) == data_digest(rows) == data_digest(rows.flatten_indices())
    assert len({data_digest(x) for x in (rows, shuffled, rows.select(range(29)), rows.remove_columns("length"))}) == 4


def test_weights_have_one_digest_and_any_change_another():
    model = tiny.bert()
    first = weights_digest(model)
    assert first == weights_digest(tiny.bert()) != weights_digest(tiny.bert(seed=1))
    with torch.no_grad():
        model.qa_outputs.bias[0] += 1e-7
    assert weights_digest(model) != first


def test_arguments_are_alike_wherever_a_command_runs(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").touch()
    words = ["--teacher=google-bert/bert-base-uncased", "--validation_file=v.csv"]
    absolute = arguments_of(*parse("classify/l3-kd", [*words, f"--train_file={tmp_path / 'data' / 'train.csv'}"]))
    assert absolute["teacher"] == "google-bert/bert-base-uncased" and absolute["train_file"] == "train.csv"
    for folder, path in (
        (tmp_path, "data/train.csv"),
        (tmp_path / "data", "train.csv"),
        (tmp_path / "data", "./train.csv"),
    ):
        monkeypatch.chdir(folder)
        assert arguments_of(*parse("classify/l3-kd", [*words, f"--train_file={path}"])) == absolute


def hold(folder, taken, go_on):
    with locked(folder, ITRDArguments(str(folder), use_cpu=True)):
        taken.set()
        go_on.wait(60)


def test_who_has_a_folder_is_told_once_and_waited_for(tmp_path, capfd):
    context = multiprocessing.get_context("fork")
    taken, go_on, args = context.Event(), context.Event(), ITRDArguments(str(tmp_path), use_cpu=True)
    other = context.Process(target=hold, args=(tmp_path, taken, go_on))
    other.start()
    assert taken.wait(60)
    who = f"process {other.pid} on {socket.gethostname()} since 20"
    with pytest.raises(BusyError, match=f"another run is at {tmp_path} .{who}"), locked(tmp_path, args):
        pass
    threading.Timer(0.5, go_on.set).start()
    with locked(tmp_path, args, wait=True):
        said = capfd.readouterr().err
        assert said.count(f"[wait] {tmp_path} is in use by {who}") == 1 and "Ctrl-C stops waiting" in said
        assert f'"process": {os.getpid()}' in (tmp_path / OWNER).read_text()
    other.join(10)
    assert other.exitcode == 0 and not (tmp_path / OWNER).exists()


def test_what_a_killed_holder_left_is_no_lock(tmp_path):
    (tmp_path / OWNER).write_text("{}")
    with locked(tmp_path, ITRDArguments(str(tmp_path), use_cpu=True)):
        pass
    assert not (tmp_path / OWNER).exists()


def test_a_folder_without_locks_is_told_in_one_line(tmp_path, monkeypatch):
    def none(self, timeout):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("itrd_nlp.experiments.output_folder.FileLock.acquire", none)
    with (
        pytest.raises(UserError, match=f"{tmp_path} cannot be locked .*No locks available"),
        locked(tmp_path, ITRDArguments(str(tmp_path), use_cpu=True)),
    ):
        pass
