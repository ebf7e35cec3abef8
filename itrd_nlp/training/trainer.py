"""The one Trainer: plain fine-tuning without a teacher, distillation with one."""

import logging
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from itrd_nlp.distillation.compilation import compile_layers, uncompile_layers
from itrd_nlp.distillation.paired import paired_inputs
from itrd_nlp.distillation.pooling import sentence_pooling, text_mask
from itrd_nlp.distillation.teacher_cache import STORED
from itrd_nlp.distillation.teacher_outputs import cache_teacher_outputs
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import CacheState, TrainingId
from itrd_nlp.training.checks import check_optimizers, check_options, check_token_ids
from itrd_nlp.training.hub_trainer import sources_of_models
from itrd_nlp.training.interruption import stoppable_training
from itrd_nlp.training.loaders import EpochBegins, default_collator
from itrd_nlp.training.matching import UNTRAINED_HEAD, match, probe_batch
from itrd_nlp.training.nonfinite import NonFiniteCallback
from itrd_nlp.training.optimizing_trainer import OptimizingTrainer
from itrd_nlp.training.step_means import StepMeans
from itrd_nlp.training.stop_callback import StopCallback
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)

# outputs that are kept out of predictions: they would fill memory
STATES = ("hidden_states", "attentions", "reshaped_hidden_states", "global_attentions")


class ITRDTrainer(OptimizingTrainer):
    """A ``transformers.Trainer`` that distils ``teacher_model`` into ``model``.

    Callbacks, early stopping, ``report_to``, resuming and ``accelerate launch`` work as in Trainer; the differences are
    listed in ``docs/guides/trainer.md``. The student is saved alone, as a folder that ``from_pretrained`` loads; beside
    it, ``itrd_state.safetensors`` holds the losses' own parameters, for resuming.

    By default, the teacher computes its outputs for all training examples once, when training starts, and is released
    (``trainer.teacher`` becomes None); they stay on disk for other seeds and recipes, see ``teacher_cache``.

    ITRD's statistics are those of one micro-batch on one rank; with ``gather_across_ranks``, of the micro-batches of
    all ranks. Gradient accumulation does not enlarge them.

    Args:
        model: the student; its weights must be in fp32.
        teacher_model: the teacher, in any precision; it is frozen. With None, ``model`` learns from the columns
            ``teacher_logits`` (a list for each example) and ``teacher_embedding`` of ``train_dataset``. Without these,
            or with empty ``losses``, it is fine-tuned on the labels alone.
        args: :class:`ITRDArguments`; ``losses`` are ignored if there is nothing to distil from.
        train_dataset: required for distillation: student and teacher are matched on its first examples.
        data_collator: pads with ``processing_class`` by default.
        processing_class: the student's tokenizer.
        teacher_processing_class: the teacher's tokenizer, if it differs; ``train_dataset`` must then keep its texts,
            see :func:`~itrd_nlp.distillation.paired.pair_dataset`.
        kwargs: as in Trainer.

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

    loss_is_scaled_for_ga = False  # the loss is a mean over the micro-batch: Trainer must divide it by their number

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher_model: PreTrainedModel | None = None,
        args: ITRDArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        **kwargs: Any,
    ):
        args = args if args is not None else ITRDArguments()
        check_options(kwargs, args)
        data_collator = default_collator(processing_class) if data_collator is None else data_collator
        if teacher_processing_class is not None:
            if teacher_model is None:
                raise UserError("teacher_processing_class without teacher_model: expected both; leave it out")
            tokenizers = (processing_class, teacher_processing_class)
            train_dataset, data_collator = paired_inputs(train_dataset, data_collator, *tokenizers, teacher_model)
        distiller, self.teacher_extractor, columns, label_names = match(
            model, teacher_model, args, train_dataset, data_collator, processing_class
        )
        if distiller.idle_head is not None:
            logger.warning(f"[losses] {UNTRAINED_HEAD.format(distiller.idle_head)}")
        check_token_ids(kwargs.get("eval_dataset"), None, [distiller.student])
        check_optimizers(kwargs.get("optimizers", (None, None)), args, distiller.losses)
        self.teacher, self.distils = teacher_model, len(distiller.losses) > 0
        self.sources = sources_of_models(model, teacher_model, self.distils)
        super().__init__(
            model=distiller,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._signature_columns, self.label_names = columns, label_names
        self.epoch_begins = EpochBegins(train_dataset)  # accelerate's set_epoch misses the first batch after resuming
        self.nonfinite = NonFiniteCallback(skip=args.nonfinite == "skip")
        self.stop_callback, self.cache_state = StopCallback(), CacheState()
        for callback in (self.epoch_begins, self.nonfinite, self.stop_callback, self.cache_state, TrainingId()):
            self.add_callback(callback)
        self._means = StepMeans()
        if teacher_model is not None:
            teacher_model.eval().requires_grad_(False)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; on SIGTERM, which then ends the process, it ends the step and saves a checkpoint.

        Raises:
            UserError: training makes no step, or cannot resume.
        """
        self._means = StepMeans()
        vars(self.student.config).pop(TEMPERATURE, None)  # was fitted to the weights before training
        with stoppable_training() as request:
            self.stop_callback.request = request
            try:
                output = super().train(*args, **kwargs)
            finally:
                uncompile_layers(self.student)
            if request.reached:  # by all ranks: the first one may still write
                self.accelerator.wait_for_everyone()
        if not output.global_step:
            raise UserError("no step was made: the training data gave no batch; expected at least one")
        return output._replace(training_loss=output.metrics["train_loss"])

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; where a signal ended training, its checkpoint stays beside a better one, to resume from."""
        limit = self.args.save_total_limit
        if self.stop_callback.request.reached:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Trainer's, by which ``save_strategy="best"`` saves; so it does after a signal."""
        return super()._determine_best_metric(*args, **kwargs) or bool(self.stop_callback.request.reached)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a trial changes arguments and model, but matched layers and losses were built with the trainer."""
        raise UserError(
            "hyperparameter_search: losses are built with the trainer, expected a new one for each trial; use "
            "`itrd sweep RECIPE --grid ...`, or call itrd_nlp.experiments.run.run in Optuna's objective"
        )

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; compiles the layers and caches the teacher's outputs first, where the arguments ask for that."""
        if self.args.torch_compile:
            self.student.to(self.args.device)  # FSDP and DeepSpeed would move it later
            columns = self._signature_columns if self.args.remove_unused_columns else None
            probe = self._prepare_inputs(probe_batch(self.train_dataset, self.data_collator, columns))
            with self.accelerator.autocast():
                compile_layers(self.student, probe, self.args.torch_compile_backend, self.args.torch_compile_mode)
        if self.teacher is not None and self.args.teacher_cache != "off":
            self._cache_teacher(self.teacher)
        self.number_examples()
        return super().get_train_dataloader()

    def _cache_teacher(self, teacher: PreTrainedModel) -> None:
        """Cache the teacher's outputs and let go of it, unless the training that is resumed ran it on each batch."""
        resumed = self.resumed_from
        before = None if resumed is None else from_first_rank(lambda: CacheState.of(resumed), self.args)
        if before is False:
            message = "[teacher cache] not used, as before the checkpoint: cached outputs are rounded"
            log_first(logger, self.args, message)
            return
        device = teacher.device
        self.cache = cache_teacher_outputs(self.teacher_source())
        if self.cache is not None:
            teacher.to(device)  # the caller may still hold it: it does not stay on the GPU
            self.teacher = None
        elif before:
            message = "[teacher cache] used before the checkpoint but not now: the result may differ a little"
            log_first(logger, self.args, message, logging.WARNING)
        self.cache_state.cached = self.cache is not None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the terms in training, the student's own loss in evaluation."""
        if self.distils and model.training:
            for loss in self.distiller.losses.values():
                loss.epoch = self._epoch()
            outputs = model(**{**inputs, "teacher": self.ask_teacher(inputs)})
            terms = outputs["terms"]
        else:
            outputs = model(**{key: value for key, value in inputs.items() if key != STORED})
            if "loss" not in outputs:
                raise UserError(f"the data carries none of the labels {self.label_names}: expected them to fine-tune")
            terms = {"loss": outputs["loss"]}
        if model.training:
            self.nonfinite.watch(terms, inputs)
            self._means.add(terms)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Trainer's, without the hidden states and attentions that a student's config may ask for: they fill memory.

        An encoder without a head, which has no loss, predicts each text's embedding.
        """
        inputs = {key: value for key, value in inputs.items() if key != STORED}
        if ignore_keys is None:
            known = getattr(self.student.config, "keys_to_ignore_at_inference", [])
            ignore_keys = [*known, *STATES]
        if self.label_names:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            tokens = model(**inputs).get("last_hidden_state")
        if tokens is None:  # a head whose labels have another name
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        mask = text_mask(inputs).to(tokens.device)  # an exported encoder answers on the CPU
        embeddings = sentence_pooling(self.student.config)([tokens], {"attention_mask": mask})[0]
        return None, embeddings, inputs.get("labels")

    def _load_callback_state(self) -> None:
        super()._load_callback_state()  # makes new callbacks
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, NonFiniteCallback):
                self.nonfinite = callback
            elif isinstance(callback, CacheState):
                self.cache_state = callback

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else None
        taken = self.nonfinite.check(norm, model, self.state.global_step + 1, scale)
        self._means.end_step(taken)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term since the last log to what Trainer logs; skipped steps are in no mean.

        As Trainer does, it adds to ``logs`` itself, which training and evaluating return.
        """
        training_ends = "total_flos" in logs  # an evaluation may have a train_loss, too
        if training_ends and self._means.run_skipped and self._means.run_steps:
            mean = self.accelerator.reduce(self._means.run_loss(), "mean")
            logs["train_loss"] = mean.item()  # Trainer counts skipped steps as zeros
        if "loss" in logs or training_ends:
            self._add_terms(logs)
        if self.nonfinite.skipped:
            logs["skipped_steps"] = self.nonfinite.skipped
        super().log(logs, start_time)

    def _add_terms(self, logs: dict[str, float]) -> None:
        """Add the means of the terms since the last log, and correct the loss where steps were skipped."""
        steps, skipped = self._means.steps, self._means.skipped
        names, values = self._means.read()
        if not steps:
            if skipped:
                logs.pop("loss", None)
            return
        terms = dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        loss = {"loss": sum(terms.values())}
        if "loss" in logs:
            logs.update({**(loss if skipped else {}), **(terms if self.distils else {})})
        elif self.distils:  # training has ended between two logs
            super().log({**loss, **terms})

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Accelerate would compile losses and hooks too: :func:`compile_layers` does it instead."""
        return {**super()._build_accelerator_args(**kwargs), "dynamo_plugin": TorchDynamoPlugin(backend="no")}
