"""Which epoch samplers and data are told of, and how a loader's workers take signals."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import TrainerCallback, TrainerState

import tiny
from itrd_nlp import ITRDArguments
from itrd_nlp.distillation.teacher_cache import IndexedCollator
from itrd_nlp.losses.base import INDEX
from itrd_nlp.training.checks import check_batches
from itrd_nlp.training.group_sampling import GROUP, check_groups
from itrd_nlp.training.interruption import ECHO, SIGNALS, start_worker
from itrd_nlp.training.loaders import EpochBegins
from itrd_nlp.utils.datasets import ChangesWithEpochs
from itrd_nlp.utils.errors import UserError
from training.test_trainer import trainer


class ShortEpochs(TrainerCallback):
    """Ends each epoch after three steps."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step % 3 == 0


@pytest.mark.parametrize("sampling", ["group_by_length", "random"])
def test_an_epoch_that_a_callback_ends_is_not_repeated(tmp_path, monkeypatch, sampling):
    seen, original = {}, IndexedCollator.__call__

    def collate(self, rows):
        batch = original(self, rows)
        seen.setdefault(made.epoch_begins.number, []).extend(batch[INDEX].tolist())
        return batch

    monkeypatch.setattr(IndexedCollator, "__call__", collate)
    options = {"max_steps": -1, "num_train_epochs": 3, "train_sampling_strategy": sampling}
    made = trainer(tmp_path, callbacks=[ShortEpochs()], **options)
    made.train()
    assert [*seen] == [0, 1, 2] and made.state.global_step == 9
    assert len({tuple(epoch) for epoch in seen.values()}) == 3


class TellsEpoch(BatchSampler):
    """A batch sampler that is told which epoch begins."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_a_sampler_behind_skipped_batches_learns_the_epoch(tmp_path):
    """As after resuming in an epoch on two processes, where Trainer's own call ends one wrapper short."""
    sampler = TellsEpoch(SequentialSampler(range(16)), 2, False)
    loader = DataLoader(range(16), batch_sampler=BatchSamplerShard(sampler, num_processes=2))
    begins, data = EpochBegins(TellsData()), skip_first_batches(loader, 1)
    args, state = ITRDArguments(str(tmp_path), use_cpu=True), TrainerState(global_step=13, num_train_epochs=5)
    begins.on_train_begin(args, state, None, train_dataloader=loader)
    begins.on_epoch_begin(args, state, None, model=tiny.bert(), train_dataloader=loader)
    assert len([*data]) == 3 and sampler.epoch == begins.number == 3 and begins.data.epoch.resumed
    begins.on_epoch_begin(args, state, None, model=tiny.bert(), train_dataloader=loader)
    assert sampler.epoch == begins.number == 4 and not begins.data.epoch.resumed


class TellsData(ChangesWithEpochs):
    """Data that are told which epoch begins."""

    def start_epoch(self, epoch):
        self.epoch = epoch


def test_an_epoch_counts_as_trainer_counts_it_after_resuming(tmp_path):
    """A checkpoint after epochs of three steps, of eight: its `state.epoch` runs ahead of the epoch that goes on."""
    options = {"max_steps": -1, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 9}
    trainer(tmp_path, callbacks=[ShortEpochs()], **options).train()
    made = trainer(tmp_path, callbacks=[ShortEpochs()], **options)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert made.epoch_begins.number == 3


def test_a_worker_ends_for_its_trainer_and_not_with_a_launcher_s_signals():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=_work, args=(started,), daemon=True)
    worker.start()
    assert started.wait(60)
    for number in (*SIGNALS, *SIGNALS):
        os.kill(worker.pid, number)
    worker.join(ECHO + 0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def _work(started):
    start_worker(lambda number: started.set(), 0)
    while True:
        time.sleep(0.1)


class TellsHandler(torch.utils.data.Dataset):
    """Says how its process takes SIGTERM."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        handler = signal.getsignal(signal.SIGTERM)
        return {"input_ids": [1, 2], "attention_mask": [1, 1], "labels": getattr(handler, "__name__", "") == "leave"}


def test_the_workers_of_training_and_evaluation_start_so(tmp_path):
    made = trainer(tmp_path, eval_dataset=tiny.rows(8), dataloader_num_workers=1)
    made.data_collator = lambda rows: {"labels": torch.tensor([row["labels"] for row in rows])}
    made.train_dataset = made.eval_dataset = TellsHandler()
    for loader in (made._get_dataloader(TellsHandler(), "", 4, is_training=True), made.get_eval_dataloader()):
        assert all(batch["labels"].all() for batch in loader)


def test_batches_that_cannot_shrink_are_refused(tmp_path):
    args = ITRDArguments(str(tmp_path), auto_find_batch_size=True, tokens_per_batch=64, use_cpu=True, bf16=False)
    with pytest.raises(UserError, match="auto_find_batch_size with tokens_per_batch"):
        check_batches(args, distils=False)
    args.tokens_per_batch = None
    check_batches(args, distils=False)
    grouped = tiny.rows(4).add_column(GROUP, [0, 0, 1, 1])
    with pytest.raises(UserError, match="auto_find_batch_size with groups of documents"):
        check_groups(args, grouped)
    check_groups(args, tiny.rows(4))
