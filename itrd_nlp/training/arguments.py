"""``ITRDArguments``: how a run trains and distils."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from itrd_nlp.distillation.cache_folders import check_teacher_cache
from itrd_nlp.training.options import CACHE_DTYPES, NONFINITE, YAML_WORDS, DistillationOptions, as_mapping, from_json
from itrd_nlp.utils.environment import computes_bf16
from itrd_nlp.utils.errors import UserError, nearest, one_line
from itrd_nlp.utils.tables import ERROR_METRICS

FSDP_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # of accelerate
SEEDS = (0, 2**32 - 1)  # numpy's
NOT_NEGATIVE, COUNT, BELOW_ONE = (0.0, math.inf), (1, math.inf), (0.0, math.nextafter(1.0, 0.0))
RANGES = {  # argument -> lowest and highest number; Trainer's own errors come late or not at all
    "seed": SEEDS,
    "data_seed": SEEDS,
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "num_train_epochs": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "dataloader_num_workers": NOT_NEGATIVE,
    "task_weight": NOT_NEGATIVE,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "tokens_per_batch": COUNT,
    "documents_per_query": COUNT,
}


@dataclass(repr=False)  # TrainingArguments' own hides tokens
class ITRDArguments(DistillationOptions, TrainingArguments):
    """``TrainingArguments`` with what distillation adds; see Trainer for the rest.

    Differences from Trainer's defaults: bf16 where the hardware supports it, one GPU for each process (no
    `DataParallel`), batches of similar length, a log every 50 steps, a checkpoint after each epoch (the last two are
    kept), and an error when a loss or a gradient is not finite.
    """

    def __post_init__(self) -> None:
        self.losses = as_mapping(self.losses, "losses")
        if isinstance(self.layer_map, str) and self.layer_map.startswith("["):
            self.layer_map = from_json(self.layer_map, "layer_map")
        self.report_to: Any = _tracker_names(self.report_to)
        self.teacher_cache = YAML_WORDS.get(str(self.teacher_cache).lower(), self.teacher_cache)
        check_teacher_cache(self.teacher_cache)
        _check_numbers(self)
        _check_milestones(self)
        self.logging_nan_inf_filter |= self.nonfinite == "skip"
        if not torch.accelerator.is_available():
            self.use_cpu = True  # Trainer refuses bf16 on a CPU unless use_cpu is set
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION")  # what `accelerate launch` was told
        if launched in ("bf16", "fp16") and self.bf16 is None and not self.fp16 and not self.use_cpu:
            setattr(self, launched, True)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and computes_bf16(self.use_cpu)
        if self.fp16 and self.use_cpu:
            raise UserError("fp16 on a CPU has no effect: use --bf16 true where the CPU has it, or neither")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        if self.tf32 is None and (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            self.tf32: bool | None = False  # TrainingArguments would turn it on, and statistics are computed in fp32
        if self.greater_is_better is None and str(self.metric_for_best_model).removeprefix("eval_") in ERROR_METRICS:
            self.greater_is_better: bool | None = False
        super().__post_init__()
        if FSDP_LOADING in os.environ:  # else only the first process would read weights, which all check
            os.environ[FSDP_LOADING] = "false"
        if self.deepspeed_plugin is None:  # a launcher's precision would hold even where an evaluation asks for fp32
            self.mixed_precision = "fp16" if self.fp16 else "bf16" if self.bf16 else "no"
        self._n_gpu = min(1, self.n_gpu)  # DataParallel cannot carry a teacher: a process uses one GPU
        _check_words(self)
        _check_schedule(self)
        _check_optimizer(self)


def _check_numbers(args: ITRDArguments) -> None:
    """Raise :class:`UserError` for a number out of its range, or an unknown choice."""
    for name, (lowest, highest) in RANGES.items():
        value = getattr(args, name)
        if isinstance(value, str):
            raise UserError(f"{name} is {value!r}: expected a number")
        if isinstance(value, int | float) and not (lowest <= value <= highest and math.isfinite(value)):
            most = "or more" if math.isinf(highest) else f"to {highest if isinstance(highest, int) else f'{highest:g}'}"
            raise UserError(f"{name} is {value}: expected {lowest:g} {most}")
    for name, choices in (("teacher_cache_dtype", CACHE_DTYPES), ("nonfinite", NONFINITE)):
        if getattr(args, name) not in choices:
            raise UserError(f"{name} is {getattr(args, name)!r}: expected one of {choices}")
    if args.max_steps == 0:
        raise UserError("max_steps is 0: expected 1 or more, or -1 for num_train_epochs")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise UserError(f"num_train_epochs is {args.num_train_epochs}: expected more than 0")
    if args.projector_learning_rate is not None and args.projector_learning_rate <= 0:
        raise UserError(f"projector_learning_rate is {args.projector_learning_rate}: expected a rate above 0")


def _tracker_names(value: Any) -> Any:
    """The trackers of ``report_to``, of which a command line or a recipe may name several, as ``a,b`` or ``[a, b]``."""
    value = from_json(value, "report_to")
    return [name.strip() for name in value.split(",")] if isinstance(value, str) and "," in value else value


def _check_words(args: ITRDArguments) -> None:
    """Raise :class:`UserError` for text in place of a mapping, or a tracker that transformers does not know."""
    for name in ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
        if isinstance(getattr(args, name, None), str):
            raise UserError(f"{name} is {getattr(args, name)!r}: expected a mapping as JSON")
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"report_to {name!r}: expected none, or {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
                f"{nearest(name, INTEGRATION_TO_CALLBACK)}"
            )


def _check_milestones(args: ITRDArguments) -> None:
    """Raise :class:`UserError` for milestones outside the training, or beside another schedule."""
    if not args.lr_milestones:
        return
    if not all(0 < epoch < args.num_train_epochs for epoch in args.lr_milestones):
        raise UserError(
            f"lr_milestones {args.lr_milestones}: expected epochs between 0 and num_train_epochs "
            f"{args.num_train_epochs}"
        )
    if args.warmup_steps or args.lr_scheduler_type != "linear":
        raise UserError("lr_milestones with warmup_steps or lr_scheduler_type: expected one schedule; leave one out")


def _check_schedule(args: ITRDArguments) -> None:
    """Raise :class:`UserError` for options that a schedule lacks or does not take, which would end training late."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    options = {
        "num_warmup_steps": 1,
        "num_training_steps": 1_000_000,
        "scheduler_specific_kwargs": args.lr_scheduler_kwargs,
    }
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, **options)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"lr_scheduler_type {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} with "
            f"lr_scheduler_kwargs {args.lr_scheduler_kwargs}: expected its options ({one_line(error)})"
        ) from None


def _check_optimizer(args: ITRDArguments) -> None:
    """Raise :class:`UserError` for an optimizer that is not installed, or options that it does not take."""
    if args.optim_target_modules or args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):  # they need a model
        return
    from transformers import Trainer  # takes seconds to import

    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ValueError, TypeError, ImportError) as error:
        optim = getattr(args.optim, "value", args.optim)
        raise UserError(
            f"optim {optim} with optim_args {args.optim_args!r}: expected an optimizer that is installed, and options "
            f"as name=value ({one_line(error)})"
        ) from None
