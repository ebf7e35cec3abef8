"""What a trainer refuses, or sets, before anything runs."""

import inspect
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.losses import of_losses
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import refusals
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.modeling import position_limit, window_limit
from itrd_nlp.utils.ranks import log_first
from itrd_nlp.utils.tokenizers import check_fit, table_rows

logger = logging.getLogger(__name__)

FEW_SAMPLES = 8  # in a batch; with fewer, correlations say little
UPLOADS = {  # tracker -> the variable by which transformers saves and uploads a model itself, and what turns it on
    "wandb": ("WANDB_LOG_MODEL", ("end", "checkpoint")),
    "dvclive": ("HF_DVCLIVE_LOG_MODEL", ("true", "1", "yes", "on", "y")),
}
NOT_FOR_TRAINER = {  # option of Trainer's constructor -> why
    "model_init": "losses are built with the trainer and its model; pass the model itself",
    "compute_loss_func": "the task's loss is the model's own; give the model another, or add a loss of your "
    "own to itrd_nlp.LOSSES",
}


def set_attention(model: PreTrainedModel, implementation: str | None) -> None:
    """Choose how a model computes attention; None leaves it as it is."""
    if implementation is None:
        return
    if "/" in implementation:
        raise UserError(
            f"attn_implementation {implementation!r}: expected one of transformers' own, such as sdpa; kernels "
            "of the Hub are code that somebody else wrote"
        )
    reason = "it has one way only"
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        reason = one_line(error)
    if model.config._attn_implementation != implementation:  # some models keep theirs, with a warning
        raise UserError(
            f"attn_implementation {implementation!r}: {type(model).__name__} cannot use it; leave it out, or try sdpa "
            f"or eager ({reason})"
        )


def check_model(model: Any) -> PreTrainedModel:
    """The model, if it is a plain one of transformers: another could not be saved and resumed as one."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{type(model).__name__}: expected a PreTrainedModel; merge an adapter of PEFT with merge_and_unload(), "
            "wrap a module of your own in a PreTrainedModel"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{type(model).__name__} carries adapters of PEFT: expected a plain model; merge them first")
    if not getattr(model.config, "return_dict", True):
        raise UserError(f"{type(model).__name__} returns tuples: expected named outputs; load it without return_dict")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise UserError(
            f"{type(model).__name__} lies on {', '.join(devices)}: expected one device; load it without device_map, in "
            "half precision if it is too large"
        )
    names = inspect.signature(model.forward).parameters
    hides_mask = "input_ids" in names and "attention_mask" not in names
    if hides_mask and not type(model).__module__.startswith("transformers.") and _takes_any(names.values()):
        raise UserError(
            f"{type(model).__name__}.forward has no attention_mask of its own: expected it by name, as **kwargs do not "
            "say which inputs a model reads"
        )
    return model


def _takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def check_precision(student: PreTrainedModel, args: ITRDArguments) -> None:
    """Refuse to train weights in half precision, in which small steps of the optimizer are rounded away.

    transformers loads a model in the precision in which it was saved. A teacher may stay in it.
    """
    if is_sharded(args) and args.mixed_precision != "no":  # they make copies in fp32, which are trained
        return
    for weight in student.parameters():
        if weight.requires_grad and weight.is_floating_point() and weight.dtype.itemsize < 4:
            raise UserError(
                f"the student's weights are {str(weight.dtype).removeprefix('torch.')}: expected float32, with which "
                "bf16 and fp16 compute by autocast; load it with dtype=torch.float32, or call student.float()"
            )


def is_sharded(args: ITRDArguments) -> bool:
    """Whether FSDP or DeepSpeed holds the weights."""
    return bool(args.deepspeed_plugin is not None or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true")


def check_activation_checkpointing(student: PreTrainedModel, args: ITRDArguments) -> None:
    """Refuse to run layers a second time where that changes what is learned."""
    if not args.activation_checkpointing:
        return
    if any(isinstance(module, _BatchNorm) for module in student.modules()):
        raise UserError(
            "activation_checkpointing with batch normalisation, whose statistics it would update twice a step: leave "
            "it out; smaller batches with gradient_accumulation_steps save memory too"
        )
    if not (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        return
    if args.world_size > 1 and args.ddp_find_unused_parameters is not False and not is_sharded(args):
        raise UserError(
            "reentrant checkpointing on several processes: DDP takes the parameters inside for unused ones; leave "
            "use_reentrant out, or set --ddp_find_unused_parameters false"
        )
    inside = of_losses(args.losses, "reads_attention")
    if inside:
        raise UserError(
            f"{inside[0]} with reentrant checkpointing: it reads queries, keys and values inside of the layers, which "
            "have no gradient there; leave use_reentrant out"
        )


def check_options(options: Mapping[str, Any], args: Any) -> None:
    """Refuse options of Trainer's constructor that ITRDTrainer cannot honour."""
    if not isinstance(args, ITRDArguments):
        raise UserError(f"args is {type(args).__name__}: expected ITRDArguments, which accept all its fields")
    for name, reason in NOT_FOR_TRAINER.items():
        if options.get(name) is not None:
            raise UserError(f"{name}: {reason}")
    for tracker, (variable, values) in UPLOADS.items():
        if tracker in args.report_to and os.environ.get(variable, "").lower() in values:
            raise UserError(
                f"{variable} with report_to {tracker} would upload the arguments, with their Hub token, and weights "
                f"that nothing loads; unset it, and upload {args.output_dir} yourself"
            )


def check_optimizers(optimizers: Sequence[Any], args: ITRDArguments, losses: nn.Module) -> None:
    """Refuse a user's optimizer that lacks the losses' parameters, or makes an argument useless."""
    optimizer, scheduler = optimizers
    if scheduler is not None and args.lr_milestones:
        raise UserError("lr_milestones with a scheduler in optimizers: expected one schedule; leave one out")
    if optimizer is None:
        return
    if args.projector_learning_rate is not None:
        raise UserError("projector_learning_rate with optimizers: expected the rates in its groups; leave one out")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, parameter in losses.named_parameters() if id(parameter) not in known]
    if missing:
        raise UserError(
            f"optimizers: the losses train {len(missing)} tensors that it does not hold, such as {missing[0]}: "
            "expected optimizer_cls_and_kwargs=(class, {...}), which gets them too"
        )


def check_budget(args: ITRDArguments, longest: int) -> None:
    """Refuse a ``tokens_per_batch`` with which a batch may hold too few texts for statistics over texts."""
    budget = args.tokens_per_batch or 0
    gathered = budget * (args.world_size if args.gather_across_ranks else 1)
    if of_losses(args.losses, "needs_statistics") and args.pooling in ("mean", "cls") and gathered < 2 * longest:
        raise UserError(
            f"tokens_per_batch {budget} with pooling {args.pooling!r} and texts of up to {longest} tokens: the "
            f"statistics need at least 2 samples, better 8; raise it to {8 * longest} or use pooling tokens"
        )


def missing_lengths_error(args: ITRDArguments) -> UserError:
    """The error of ``tokens_per_batch`` with data that say no lengths."""
    return UserError(
        f"tokens_per_batch {args.tokens_per_batch}: the training data has no column {args.length_column_name!r} or "
        "'input_ids'; expected a datasets.Dataset of texts"
    )


def check_batches(args: ITRDArguments, distils: bool) -> None:
    """Refuse arguments without effect, and batches that cannot carry a teacher or the losses' statistics."""
    if refused := refusals(args):
        name, reason = next(iter(refused.items()))
        raise UserError(f"{name}: {reason}; leave it out")
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args, args.deepspeed_plugin)
    inside = of_losses(args.losses, "reads_attention")
    if args.torch_compile and inside:
        raise UserError(
            f"torch_compile with {inside[0]}: it reads queries, keys and values inside of the compiled layers; leave "
            "one of them out"
        )
    if args.auto_find_batch_size and args.tokens_per_batch is not None:
        raise UserError(
            "auto_find_batch_size with tokens_per_batch, whose batches it does not make smaller: leave one of them out"
        )
    if args.auto_find_batch_size and distils:
        raise UserError(
            "auto_find_batch_size with a teacher: the losses compare the samples of a batch, whose size decides the "
            "result; set per_device_train_batch_size"
        )
    exact = of_losses(args.losses, "needs_fp32")
    if distils and is_sharded(args) and args.mixed_precision != "no" and exact:
        raise UserError(
            f"{exact[0]} with FSDP or DeepSpeed in half precision: its projections must stay in fp32; "
            "start with DDP (scripts/accelerate/multi_gpu.yaml), or set --bf16 false (with DeepSpeed: mixed_precision "
            "'no' in the launcher's file)"
        )
    banks = of_losses(args.losses, "reads_index")
    unequal = [name for name, is_set in _unequal_batches(args).items() if is_set]
    if distils and unequal and args.world_size > 1 and banks:
        raise UserError(
            f"{unequal[0]} with {banks[0]} on {args.world_size} processes: a memory bank needs as many texts on each; "
            "leave it out, and set per_device_train_batch_size"
        )
    if distils and args.tokens_per_batch is None and args.pooling in ("mean", "cls"):  # by tokens: in the sampler
        _check_samples(args)


def _check_deepspeed(args: ITRDArguments, plugin: Any) -> None:
    if plugin.zero_stage == 3:
        raise UserError(
            "DeepSpeed ZeRO-3 splits the weights of every model that is loaded, the teacher's too: expected stage 1 or "
            "2, as in scripts/accelerate/deepspeed_zero2.yaml"
        )
    for section, name in (("optimizer", "projector_learning_rate"), ("scheduler", "lr_milestones")):
        if section in plugin.deepspeed_config and getattr(args, name):
            raise UserError(f"{name} with the {section} of a DeepSpeed file, which has one of its own: leave one out")
    if args.nonfinite == "skip":
        raise UserError("nonfinite skip with deepspeed: it holds the gradients itself; leave one of them out")


def _unequal_batches(args: ITRDArguments) -> dict[str, bool]:
    """What may give processes batches of different sizes -> whether it is set."""
    return {
        "tokens_per_batch": bool(args.tokens_per_batch),
        "train_sampling_strategy batch_rebalance": args.train_sampling_strategy == "batch_rebalance",
        "accelerator_config even_batches false": not args.accelerator_config.even_batches,
    }


def _check_samples(args: ITRDArguments) -> None:
    """Refuse batches of one sample, and warn of batches of few, where a loss takes statistics over them."""
    together = args.world_size if args.gather_across_ranks else 1
    parts = args.world_size if args.accelerator_config.split_batches else 1
    samples = args.per_device_train_batch_size // parts * together
    if samples >= FEW_SAMPLES or not of_losses(args.losses, "needs_statistics"):
        return
    advice = "raise it or use pooling tokens"
    if args.world_size > together:
        advice += f", or --gather_across_ranks true, for the samples of all {args.world_size} processes"
    message = (
        f"per_device_train_batch_size {args.per_device_train_batch_size} with pooling {args.pooling!r}: the statistics "
        f"need at least 2 samples, better {FEW_SAMPLES}; {advice}"
    )
    if samples < 2:
        raise UserError(message)
    log_first(logger, args, f"[statistics] {message}", logging.WARNING)


def check_positions(model: PreTrainedModel, longest: int, name: str) -> None:
    """Raise :class:`UserError` where examples of ``longest`` tokens have more than a model's positions."""
    if longest > window_limit(model):
        raise UserError(
            f"max_length {longest} exceeds the {window_limit(model)} positions of {name}: lower --max_length"
        )


def check_token_ids(data: Any, tokenizer: Any, models: Iterable[PreTrainedModel]) -> None:
    """Refuse a tokenizer, and data with token ids or lengths, that a model has no embeddings for."""
    models = [model for model in models if model.main_input_name == "input_ids"]
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        for model in models:
            check_fit(model, tokenizer, model.name_or_path or type(model).__name__)
    if not models or not isinstance(data, Dataset) or "input_ids" not in data.column_names:
        return
    highest = longest = 0
    for batch in data.select_columns("input_ids").with_format("arrow").iter(10_000):
        column = batch["input_ids"]
        while pyarrow.types.is_nested(column.type.value_type):  # choices of an example
            column = pc.list_flatten(column)
        highest = max(highest, pc.max(pc.list_flatten(column)).as_py() or 0)
        longest = max(longest, pc.max(pc.list_value_length(column)).as_py() or 0)
    for model in models:
        name, rows = model.name_or_path or type(model).__name__, table_rows(model)
        if rows is not None and highest >= rows:
            raise UserError(
                f"the data holds token id {highest}, {name} knows ids below {rows}: tokenise with its own tokenizer"
            )
        if longest > position_limit(model):
            raise UserError(
                f"the data holds a text of {longest} tokens, {name} has {position_limit(model)} positions: cut texts "
                "to that length (truncation=True, max_length=...)"
            )
