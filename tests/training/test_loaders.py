"""Which epoch samplers and data are told of, and how a loader's workers take signals."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertModel,
    TrainerCallback,
    TrainerState,
    default_data_collator,
)

import tiny
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.distillation.teacher_cache import IndexedCollator
from itrd_nlp.losses.base import INDEX
from itrd_nlp.training.checks import check_batches, check_budget
from itrd_nlp.training.group_sampling import GROUP, check_groups
from itrd_nlp.training.interruption import ECHO, SIGNALS, exit_flag, start_worker
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
    worker = context.Process(target=_work, args=(started, exit_flag()), daemon=True)
    worker.start()
    assert started.wait(60)
    for number in (*SIGNALS, *SIGNALS):
        os.kill(worker.pid, number)
    worker.join(ECHO + 0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def _work(started, exiting):
    start_worker(lambda number: started.set(), exiting, 0)
    while True:
        time.sleep(0.1)


def test_a_process_that_ends_does_not_wait_for_its_workers():
    """As after an error in training, whose traceback keeps the loader: multiprocessing signals workers once."""
    process = multiprocessing.get_context("fork").Process(target=_leave_a_worker)
    process.start()
    process.join(60)
    ended = not process.is_alive()
    process.kill()
    assert ended and process.exitcode == 0


def _leave_a_worker():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    context.Process(target=_work, args=(started, exit_flag()), daemon=True).start()
    assert started.wait(60)


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


def test_a_collator_that_tokenises_gets_all_columns(tmp_path):
    rows = [{name: row[name] for name in row} for row in tiny.rows()]
    data = Dataset.from_list([{"question": json.dumps(row)} for row in rows])
    made = trainer(tmp_path, data=data, remove_unused_columns=False, collate=collate_json, max_steps=2)
    assert made.train().global_step == 2
    refused = {"match": "the collator makes no batch of the columns"}
    with pytest.raises(UserError, **refused):
        trainer(tmp_path, data=data, collate=collate_json)


def collate_json(rows):
    return tiny.collate([json.loads(row["question"]) for row in rows])


def test_an_encoder_without_a_head_predicts_texts_without_a_mask(tmp_path):
    data = tiny.rows(8, equal_length=True).select_columns(["input_ids"])
    arguments = ITRDArguments(str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True)
    made = ITRDTrainer(
        BertModel(tiny.config()), args=arguments, train_dataset=data, data_collator=default_data_collator
    )
    assert made.predict(data).predictions.shape == (8, 32)


class Named(BertForQuestionAnswering):
    """A class of a user's own, whose labels have a name that does not say so."""

    def forward(self, input_ids=None, attention_mask=None, target=None):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class Hidden(BertForQuestionAnswering):
    def forward(self, input_ids=None, labels=None, **kwargs):
        return super().forward(input_ids=input_ids, **kwargs)


def test_classes_of_users_are_read_by_the_names_of_their_inputs(tmp_path):
    arguments = ITRDArguments(str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True)
    made = ITRDTrainer(Named(tiny.config()), args=arguments, train_dataset=tiny.rows(8), data_collator=tiny.collate)
    assert made.label_names == []
    start, end = made.predict(tiny.rows(8, labels=False)).predictions
    assert start.shape == end.shape == (8, 16)
    with pytest.raises(UserError, match="Hidden.forward has no attention_mask of its own"):
        ITRDTrainer(Hidden(tiny.config()), args=arguments, train_dataset=tiny.rows(8), data_collator=tiny.collate)


def test_examples_with_several_choices_are_trained(tmp_path):
    rows = [{"input_ids": [row["input_ids"]] * 2, "label": 0} for row in tiny.rows(8, equal_length=True)]
    arguments = ITRDArguments(str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, max_steps=1)
    model, data = BertForMultipleChoice(tiny.config()), Dataset.from_list(rows)
    made = ITRDTrainer(model, args=arguments, train_dataset=data, data_collator=default_data_collator)
    assert made.train().global_step == 1
    rows[3]["input_ids"] = [[5, 6], [5, 10_000]]
    with pytest.raises(UserError, match="token id 10000"):
        ITRDTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), data_collator=default_data_collator)


def test_streamed_data_make_no_batches_of_tokens(tmp_path):
    with pytest.raises(UserError, match="tokens_per_batch 64: the training data has no column"):
        trainer(tmp_path, data=tiny.rows().to_iterable_dataset(), tokens_per_batch=64)


def test_a_budget_of_one_text_is_enough_where_processes_gather_theirs(tmp_path, monkeypatch):
    options = {"losses": {"itrd": {}}, "pooling": "mean", "tokens_per_batch": 384, "use_cpu": True, "bf16": False}
    args = ITRDArguments(str(tmp_path), **options)
    with pytest.raises(UserError, match="tokens_per_batch 384 with pooling 'mean' and texts of up to 384 tokens"):
        check_budget(args, 384)
    monkeypatch.setattr(ITRDArguments, "world_size", 8)
    with pytest.raises(UserError, match="the statistics need at least 2 samples"):
        check_budget(args, 384)  # each process has statistics of its own
    args.gather_across_ranks = True
    check_budget(args, 384)


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
