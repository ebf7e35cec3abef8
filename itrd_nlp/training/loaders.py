"""The batches of a trainer: which examples meet in one, what each carries, and what the teacher's outputs are."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import has_length

from itrd_nlp.distillation.alignment import teacher_view
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.stored_rows import join_rows
from itrd_nlp.distillation.teacher_cache import STORED, IndexedCollator, TeacherCache
from itrd_nlp.distillation.teacher_columns import ColumnExtractor
from itrd_nlp.distillation.teacher_source import Source
from itrd_nlp.losses.base import INDEX, Representation
from itrd_nlp.training.checkpoint_trainer import CheckpointingTrainer
from itrd_nlp.training.checks import check_budget, missing_lengths_error
from itrd_nlp.training.group_sampling import GroupSampler, group_sampler, is_grouped
from itrd_nlp.training.interruption import exit_flag, start_worker
from itrd_nlp.training.sampling import EpochLengthSampler, RankBatchSampler
from itrd_nlp.utils.batches import text_lengths, token_batches
from itrd_nlp.utils.datasets import ChangesWithEpochs, Epoch, NumberedDataset
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import reads_images


class LoadingTrainer(CheckpointingTrainer):
    """A ``Trainer`` with a teacher, whose batches carry their examples' indices and the teacher's cached outputs."""

    train_dataset: Any
    data_collator: Any
    distils: bool
    teacher: PreTrainedModel | None
    teacher_extractor: FeatureExtractor
    _signature_columns: list[str]
    cache: TeacherCache | None = None
    epoch_begins: "EpochBegins"
    _drawn: tuple[Any, Any] | None = None  # the training data, with all columns and with those that batches need

    def draw(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the training examples at ``indices``, on the device."""
        data = self.train_dataset
        if not isinstance(data, NumberedDataset):
            if self._drawn is None or self._drawn[0] is not data:  # once: it takes time for each batch of the table
                self._drawn = data, self._remove_unused_columns(data)
            data = self._drawn[1]
        return self._prepare_inputs(dict(self.data_collator(data.__getitems__(list(indices)))))

    def ask_teacher(self, batch: Mapping[str, Any]) -> Representation:
        """The teacher's outputs for a batch of training data: those it carries, or the cached ones, else its own."""
        if isinstance(self.teacher_extractor, ColumnExtractor):
            return self.teacher_extractor(None, batch)[1]
        if self.cache is not None:
            return join_rows(batch[STORED], teacher_view(batch), self.teacher_extractor)
        return self._run_teacher(batch)

    def _run_teacher(self, batch: Mapping[str, Any], to_store: bool = False) -> Representation:
        assert self.teacher is not None, "only a trainer with a teacher can ask it"
        if next(self.teacher.parameters()).device != self.args.device:
            self.teacher.to(self.args.device)
        inputs = {key: value for key, value in teacher_view(batch).items() if key not in self.label_names}
        if not self.accelerator.native_amp:  # DeepSpeed casts batches to the student's precision
            kind = self.teacher.dtype
            inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher_extractor(self.teacher, inputs, to_store)[1]

    def _teacher_precision(self) -> str:
        """That of autocast, and of fp32 where tf32 is set."""
        autocast = self.accelerator.mixed_precision if self.accelerator.native_amp else "no"
        return autocast + ("" if self.args.tf32 is None else f", tf32 {self.args.tf32}")

    def teacher_source(self) -> Source:
        """What caching the teacher's outputs needs to know of this training."""
        assert self.teacher is not None, "only a trainer with a teacher has outputs to cache"
        return Source(
            self.teacher,
            self.teacher_extractor,
            self.train_dataset,
            self.args,
            lambda indices: teacher_view(self.draw(indices)),
            lambda batch: self._run_teacher(batch, to_store=True),
            batches=lambda: len(self._get_train_sampler()),
            share=self.share_of_epoch(),
            precision=self._teacher_precision(),
        )

    def number_examples(self) -> None:
        """Add each example's index to the batches, where the data allows it: the cache, losses and messages use it."""
        data, numbered = self.train_dataset, isinstance(self.data_collator, IndexedCollator)
        plain = isinstance(data, Dataset) and data.format["type"] != "custom"
        if numbered and INDEX not in (getattr(data, "column_names", None) or ()):
            raise UserError("train_dataset was replaced after a training: expected a new trainer for other data")
        if plain and not numbered:
            self.train_dataset = data.add_column(INDEX, np.arange(len(data)))
            self.data_collator = IndexedCollator(self.data_collator, self.cache)
        elif numbered:  # a second training may have a cache where the first had none
            self.data_collator.cache = self.cache
        if self.cache is not None:
            self.cache.map_files()  # before workers are forked, each of which would map them in every epoch
        if (plain and not numbered) or isinstance(data, NumberedDataset):
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, INDEX]))

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; raises :class:`UserError` where an epoch has no batch."""
        loader = super().get_train_dataloader()
        if has_length(loader) and not len(loader):
            size = self.args.train_batch_size * self.args.world_size
            drops = ", dataloader_drop_last" if self.args.dataloader_drop_last else ""
            raise UserError(
                f"no batch in an epoch: {len(self.train_dataset)} training examples, batches of {size}{drops}: "
                "expected at least one; lower per_device_train_batch_size, or set dataloader_drop_last false"
            )
        return loader

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """Trainer's; evaluation covers every example, whatever ``dataloader_drop_last`` says of training.

        Workers leave signals to this process.
        """
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        inner = getattr(loader, "base_dataloader", loader)  # which accelerate's iterates over
        if inner.num_workers:
            inner.worker_init_fn = partial(start_worker, inner.worker_init_fn, exit_flag())
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; none when a resumed run has made its last step: Trainer would make another one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A sampler of batches that are made by length or of groups, or else Trainer's."""
        args, dataset = self.args, self.train_dataset if train_dataset is None else train_dataset
        # `dataset` has lost the columns of lengths and groups by now
        texts = None if reads_images(self.student) else self.train_dataset
        if args.tokens_per_batch is None and not is_grouped(texts):
            if args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            if texts is None:
                return RandomSampler(dataset)
        lengths = text_lengths(texts, args.length_column_name)
        seed = args.seed if args.data_seed is None else args.data_seed
        if args.tokens_per_batch is not None and lengths and self.distils:
            check_budget(args, max(lengths))
        if is_grouped(texts):
            return group_sampler(args, texts, lengths, seed, self._epoch)
        if args.tokens_per_batch is None:
            if lengths is None and "input_ids" not in dataset[0]:
                return RandomSampler(dataset)  # the collator tokenises
            batch = args.train_batch_size * args.gradient_accumulation_steps
            return EpochLengthSampler(batch, dataset, lengths, seed, self._epoch)
        if lengths is None:
            raise missing_lengths_error(args)
        batches = token_batches(lengths, args.tokens_per_batch)
        return RankBatchSampler(batches, seed, self._epoch, args.process_index, args.world_size)

    def share_of_epoch(self) -> float | None:
        """Of all documents, the share that an epoch draws; None where the training data has no groups."""
        sampler = self._get_train_sampler() if is_grouped(self.train_dataset) else None
        return sampler.share if isinstance(sampler, GroupSampler) else None

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """In the dataset's order, which metrics rely on: Trainer would shuffle it by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _epoch(self) -> int:
        return self.epoch_begins.number


class EpochBegins(TrainerCallback):
    """Tells the training data, its samplers and the modules that are trained which epoch begins."""

    def __init__(self, data: Any):
        self.data = data
        self.number = 0  # of the epoch: `state.epoch` does not give it if a callback ends an epoch early
        self.first, self.resumed = True, False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Note in which epoch training begins or goes on."""
        steps = max(state.max_steps, 1)
        if has_length(train_dataloader):
            steps = max(math.ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
        self.number, rest = divmod(state.global_step, steps)  # as Trainer counts
        self.first, self.resumed = True, rest > 0

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count the epoch, and tell everything that changes with it."""
        self.number += not self.first
        epoch = Epoch(self.number, state.num_train_epochs, args.seed, self.first and self.resumed)
        self.first = False
        for each in (self.data, *model.modules()):
            if isinstance(each, ChangesWithEpochs):
                each.start_epoch(epoch)
        sampler = train_dataloader  # after resuming, Trainer's set_epoch ends one wrapper short
        while (sampler := getattr(sampler, "batch_sampler", None)) is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.number)


def default_collator(processing_class: Any) -> Any:
    """The collator that Trainer would choose: one that pads, where there is a tokenizer."""
    pads = isinstance(processing_class, PreTrainedTokenizerBase | SequenceFeatureExtractor)
    return DataCollatorWithPadding(processing_class) if pads else default_data_collator
