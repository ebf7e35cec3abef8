"""Which epoch samplers and data are told of, and how a loader's workers take signals."""

import multiprocessing
import os
import time
from functools import partial

import pytest
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
from itrd_nlp.training.interruption import SIGNALS, start_worker
from itrd_nlp.training.loaders import EpochBegins
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
    begins = EpochBegins(None)
    args, state = ITRDArguments(str(tmp_path), use_cpu=True), TrainerState(epoch=3.25, num_train_epochs=5)
    begins.on_train_begin(args, state, None)
    resumed = skip_first_batches(loader, 1)
    begins.on_epoch_begin(args, state, None, model=tiny.bert(), train_dataloader=resumed)
    assert sampler.epoch == begins.number == 3
    begins.on_epoch_begin(args, state, None, model=tiny.bert(), train_dataloader=loader)
    assert sampler.epoch == begins.number == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_ignores_signals_that_reach_all_processes(method):
    context = multiprocessing.get_context(method)
    started = context.Event()
    worker = context.Process(target=_work, args=(started,), daemon=True)
    worker.start()
    assert started.wait(60)
    for number in SIGNALS:
        os.kill(worker.pid, number)
    worker.join(0.5)
    assert worker.is_alive()
    worker.kill()
    worker.join(10)


def _work(started):
    start_worker(lambda number: started.set(), 0)
    time.sleep(60)


def test_the_workers_of_training_and_evaluation_start_so(tmp_path):
    made = trainer(tmp_path, eval_dataset=tiny.rows(8), dataloader_num_workers=1)
    for loader in (made.get_train_dataloader(), made.get_eval_dataloader()):
        assert isinstance(loader.worker_init_fn, partial) and loader.worker_init_fn.func is start_worker


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
