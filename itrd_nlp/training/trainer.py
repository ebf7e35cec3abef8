"""The one Trainer: plain fine-tuning without a teacher, distillation with one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import TorchDynamoPlugin
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    default_data_collator,
)
from transformers.trainer_utils import has_length

from itrd_nlp.distillation.distiller import compile_layers
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.teacher_cache import STORED, IndexedCollator, TeacherCache, join_rows
from itrd_nlp.distillation.teacher_outputs import Source, cache_teacher_outputs
from itrd_nlp.losses.base import INDEX, Representation
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.callbacks import EpochBegins
from itrd_nlp.training.checkpointing import CheckpointingTrainer
from itrd_nlp.training.checks import check_optimizers, check_options, check_texts
from itrd_nlp.training.matching import match, probe_batch
from itrd_nlp.training.model_card import sources_of_models
from itrd_nlp.training.nonfinite import NonFiniteCallback
from itrd_nlp.training.optimization import milestones, separate_rate
from itrd_nlp.training.sampling import sampler_by_length
from itrd_nlp.training.step_means import StepMeans
from itrd_nlp.utils.datasets import NumberedDataset
from itrd_nlp.utils.errors import UserError


class ITRDTrainer(CheckpointingTrainer):
    """A ``transformers.Trainer`` that distils ``teacher_model`` into ``model``.

    Callbacks, early stopping, ``report_to``, resuming and ``accelerate launch`` work as in Trainer; what differs stands
    in ``docs/guides/trainer.md``, and what could not be honoured is refused by name. The student is saved alone, as a
    folder that ``from_pretrained`` loads; the losses' own parameters lie beside it in ``itrd_state.safetensors``, which
    only resuming reads.

    With ``teacher_cache``, which is the default, the teacher is asked about each training example once, when training
    starts, and is then let go (``trainer.teacher`` becomes None); its answers lie on disk for other seeds and recipes.

    The statistics of ITRD are those of one micro-batch on one rank; with ``gather_across_ranks``, of the micro-batches
    of all ranks. Gradient accumulation does not enlarge them.

    Args:
        model: the student.
        teacher_model: the teacher, frozen here; None fine-tunes ``model`` on its labels alone.
        args: :class:`ITRDArguments`; its ``losses`` are ignored without a teacher.
        train_dataset: required to distil: its first rows are the probe on which student and teacher are matched.
        data_collator: defaults to dynamic padding with ``processing_class``.
        kwargs: what Trainer takes.

    Raises:
        UserError: student, teacher, data and arguments do not fit; one line each.

    Example:
        >>> trainer = ITRDTrainer(  # doctest: +SKIP
        ...     model=student_from_teacher(teacher, layers="even:3"),
        ...     teacher_model=teacher,
        ...     args=ITRDArguments("out", losses={"itrd": {}, "kd": {"temperature": 8}}),
        ...     train_dataset=train_dataset,
        ...     processing_class=tokenizer,
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    train_dataset: Any
    lr_scheduler: Any
    data_collator: Any
    loss_is_scaled_for_ga = False  # the loss is a mean over the micro-batch: Trainer must divide it by their number

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher_model: PreTrainedModel | None = None,
        args: ITRDArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        args = args if args is not None else ITRDArguments()
        check_options(kwargs, args)
        if data_collator is None:  # as Trainer chooses
            padded = isinstance(processing_class, PreTrainedTokenizerBase | SequenceFeatureExtractor)
            data_collator = DataCollatorWithPadding(processing_class) if padded else default_data_collator
        distiller, self.teacher_extractor, columns = match(
            model, teacher_model, args, train_dataset, data_collator, processing_class
        )
        check_texts(kwargs.get("eval_dataset"), None, [distiller.student])
        check_optimizers(kwargs.get("optimizers", (None, None)), args, distiller.losses)
        self.teacher, self.distils = teacher_model, teacher_model is not None
        self.sources = sources_of_models(model, teacher_model)
        self.cache: TeacherCache | None = None
        super().__init__(
            model=distiller,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # what loss_is_scaled_for_ga says, for transformers below 5.7
        self._signature_columns = columns
        self.add_callback(EpochBegins(train_dataset))  # accelerate's set_epoch misses the first batch after resuming
        self.nonfinite = NonFiniteCallback(skip=args.nonfinite == "skip")
        self.add_callback(self.nonfinite)
        self._epoch_batches = 0
        self._means = StepMeans()
        if teacher_model is not None:
            teacher_model.eval().requires_grad_(False)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; a training that makes no step is an error, not a success.

        Raises:
            UserError: no step, or what resuming refuses.
        """
        self._means = StepMeans()
        output = super().train(*args, **kwargs)
        if not output.global_step:
            raise UserError("no step was made: the training data gave no batch; expected at least one")
        return output._replace(training_loss=output.metrics["train_loss"])

    @property
    def student(self) -> PreTrainedModel:
        """The model that is trained and saved."""
        return self.accelerator.unwrap_model(self.model).student

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a trial changes arguments and model, but matched layers and losses were built with the trainer."""
        raise UserError(
            "hyperparameter_search: losses are built with the trainer, expected a new one for each trial; use "
            "`itrd sweep RECIPE --grid ...`, or call itrd_nlp.experiments.run.run in Optuna's objective"
        )

    def ask_teacher(self, batch: Mapping[str, Any]) -> Representation:
        """What the frozen teacher says about a batch of training data."""
        if self.cache is not None:
            return join_rows(batch[STORED], batch)
        assert self.teacher is not None, "only a trainer with a teacher can ask it"
        if next(self.teacher.parameters()).device != self.args.device:
            self.teacher.to(self.args.device)
        inputs = {key: value for key, value in batch.items() if key not in self.label_names}
        with torch.inference_mode(), self.accelerator.autocast():
            _, said = self.teacher_extractor(self.teacher, inputs)
        logits = {head: value.clone() for head, value in said.logits.items()}  # clones may be saved for the backward
        parts = (said.features, said.attention, said.maps)
        features, attention, maps = [tuple(x.clone() for x in tensors) for tensors in parts]
        return said._replace(logits=logits, features=features, attention=attention, maps=maps)

    def teacher_source(self) -> Source:
        """What caching the teacher's outputs needs to know of this training."""
        assert self.teacher is not None, "only a trainer with a teacher has outputs to cache"
        return Source(
            self.teacher,
            self.teacher_extractor,
            self.train_dataset,
            self.args,
            self.draw,
            self.ask_teacher,
            batches=lambda: len(self._get_train_sampler()),
            precision=self.accelerator.mixed_precision,
        )

    def draw(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the training examples at ``places``, on the device."""
        data = self.train_dataset
        if not isinstance(data, NumberedDataset):
            data = self._remove_unused_columns(data)
        rows = data.__getitems__(list(places))
        return self._prepare_inputs(dict(self.data_collator(rows)))

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; compiles the layers and stores the teacher's answers first, where that is asked for."""
        if self.args.torch_compile:
            probe = self._prepare_inputs(probe_batch(self.train_dataset, self.data_collator, self._signature_columns))
            with self.accelerator.autocast():
                compile_layers(self.student, probe, self.args.torch_compile_backend, self.args.torch_compile_mode)
        if self.teacher is not None and self.args.teacher_cache != "off":
            home = next(self.teacher.parameters()).device
            self.cache = cache_teacher_outputs(self.teacher_source())
        if self.teacher is not None and self.cache is not None:
            self.teacher.to(home)  # whoever else holds it, it does not stay on the GPU
            self.teacher = None
        self._number_examples()
        loader = super().get_train_dataloader()
        if has_length(loader) and not len(loader):
            raise UserError(_no_batch(len(self.train_dataset), self.args))
        if self.args.lr_milestones:
            self._epoch_batches = len(loader)
        return loader

    def _number_examples(self) -> None:
        """Let batches carry their examples' places where they have some: for stored answers, losses and messages."""
        data = self.train_dataset
        if isinstance(data, NumberedDataset):
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, INDEX]))
        if (
            isinstance(self.data_collator, IndexedCollator)
            or not isinstance(data, Dataset)
            or data.format["type"] == "custom"
        ):
            return
        self.train_dataset = data.add_column(INDEX, np.arange(len(data)))
        self.data_collator = IndexedCollator(self.data_collator, self.cache)
        self._signature_columns = [*self._signature_columns, INDEX]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; none where what is resumed has made its last step: Trainer would make another one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's, without biases and normalisations; all of them where ``decay_all`` asks for it."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's; at each of ``lr_milestones``, in epochs, the rate falls to a tenth."""
        args = self.args
        if not args.lr_milestones or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = self.optimizer if optimizer is None else optimizer
        steps = -(-(self._epoch_batches or len(super().get_train_dataloader())) // args.gradient_accumulation_steps)
        self.lr_scheduler = milestones(optimizer, args.lr_milestones, steps)
        self._created_lr_scheduler = True  # another call of train() makes another one
        return self.lr_scheduler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's; what the losses train has groups of its own where it has a rate of its own."""
        made, rate = self.optimizer is not None, self.args.projector_learning_rate
        optimizer = super().create_optimizer(*args, **kwargs)
        if rate is not None and not made:  # by an earlier call of train()
            separate_rate(optimizer, self.accelerator.unwrap_model(self.model).losses.parameters(), rate)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the terms in training, the student's own loss in evaluation."""
        if not (self.distils and model.training):
            outputs = model(**{key: value for key, value in inputs.items() if key != STORED})
            if "loss" not in outputs:
                raise UserError(f"the data carries none of the labels {self.label_names}: expected them to fine-tune")
            terms = {"loss": outputs["loss"]}
        else:
            teacher = self.ask_teacher(inputs)
            for loss in self.accelerator.unwrap_model(model).losses.values():
                loss.epoch = self._epoch()
            outputs = model(**{**inputs, "teacher": teacher})
            terms = outputs["terms"]
        loss = outputs["loss"]
        if model.training:
            self.nonfinite.watch(terms, inputs)
            self._means.add(terms)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's; an encoder without a head, which has no loss, says the mean of each text's tokens."""
        if self.label_names:
            return super().prediction_step(model, inputs, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            tokens = model(**inputs)["last_hidden_state"]
        pooled = Pooling("mean")([tokens], {"attention_mask": inputs["attention_mask"]})[0]
        return None, pooled, inputs.get("labels")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = self.accelerator.scaler is not None
        self._means.end_step(self.nonfinite.check(norm, model, self.state.global_step + 1, scaled))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term since the last log to what Trainer logs; skipped steps are in no mean.

        As Trainer does, it adds to ``logs`` itself, which training and evaluating return.
        """
        if "train_loss" in logs and self._means.run_skipped and self._means.run_steps:
            mean = self.accelerator.reduce(self._means.run_mean(), "mean")
            logs["train_loss"] = mean.item()  # Trainer counts skipped steps as zeros
        if "loss" in logs or "train_loss" in logs:
            self._add_terms(logs)
        if self.nonfinite.skipped:
            logs["skipped_steps"] = self.nonfinite.skipped
        super().log(logs, start_time)

    def _add_terms(self, logs: dict[str, float]) -> None:
        """Add the means of the terms, where a step was taken since the last log."""
        skipped, ended = self._means.skipped, "train_loss" in logs
        if not self._means.steps:
            self._means.restart()
            if skipped:  # no step of them has a loss
                logs.pop("loss", None)
            return
        names, means = self._means.read()
        terms = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        total = {"loss": sum(terms.values())}
        if ended and self.distils:  # training has ended between two logs
            super().log({**total, **terms})
        elif not ended:
            logs.update({**(total if skipped else {}), **(terms if self.distils else {})})

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        images = self.student.main_input_name == "pixel_values"
        lengths_of = None if images else self.train_dataset  # `dataset` has lost their column by now
        chosen = sampler_by_length(self.args, dataset, lengths_of, self._epoch, self.distils)
        return super()._get_train_sampler(train_dataset) if chosen is None else chosen

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Accelerate would compile losses and hooks too: :func:`compile_layers` does it instead."""
        return {**super()._build_accelerator_args(**kwargs), "dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Trainer's; each example is evaluated, whatever ``dataloader_drop_last`` says of training."""
        with _every_example(self.args):
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Trainer's, as :meth:`get_eval_dataloader`."""
        with _every_example(self.args):
            return super().get_test_dataloader(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """In the dataset's order, which metrics rely on: Trainer would shuffle it by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


@contextmanager
def _every_example(args: ITRDArguments) -> Iterator[None]:
    """Let a data loader that is made meanwhile keep its last batch."""
    drops, args.dataloader_drop_last = args.dataloader_drop_last, False
    try:
        yield
    finally:
        args.dataloader_drop_last = drops


def _no_batch(examples: int, args: ITRDArguments) -> str:
    """Why a training set makes no batch."""
    together = args.train_batch_size * args.world_size
    return (
        f"no batch in an epoch: {examples} training examples, batches of {together}"
        + (", dataloader_drop_last" if args.dataloader_drop_last else "")
        + ": expected at least one; lower per_device_train_batch_size, or set dataloader_drop_last false"
    )
