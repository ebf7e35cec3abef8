"""Which of a run's arguments decide its result: a table that judges each argument of Trainer, and its uses.

An argument that is not in the table counts: where it is set, the run is another one.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.options import defaults_of

VERSION = 3  # of fingerprints: a run that another version began is not continued


class Judgement(NamedTuple):
    """What an argument means here."""

    # "weights"; "distillation": with a teacher; "selection": where scores decide; "draws": where set; "": never
    decides: str
    handling: str = "honoured"  # as in Trainer; or "refused", or "without effect"
    reason: str = ""


def _refused(reason: str) -> Judgement:
    return Judgement("", "refused", reason)


WEIGHTS, DISTILLATION, SELECTION = Judgement("weights"), Judgement("distillation"), Judgement("selection")
DRAWS = Judgement("draws")  # evaluating draws from the generator of dropout on a CPU
SCORES = Judgement("", reason="how scores are computed")
OUTPUT, MACHINE = Judgement("", reason="what is written or shown"), Judgement("", reason="how fast, in what memory")
RESUMING = Judgement("", reason="how training resumes")  # a run, which resumes by itself, refuses them
SCRIPTS = Judgement("", "without effect", "for scripts around Trainer, which does not look at it")
OLD_NAMES = Judgement("", reason="the old names of activation_checkpointing and its kwargs, which they set")
MEANS = Judgement("", "without effect", "the loss is a mean over each batch, and its gradient over the processes")

GROUPS = [
    # the schedule, the optimizer, the batches
    (WEIGHTS, "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps"),
    (WEIGHTS, "learning_rate lr_scheduler_type lr_scheduler_kwargs lr_milestones warmup_steps max_grad_norm"),
    (WEIGHTS, "optim optim_args optim_target_modules weight_decay decay_all adam_beta1 adam_beta2 adam_epsilon"),
    (WEIGHTS, "neftune_noise_alpha nonfinite seed data_seed full_determinism"),
    (WEIGHTS, "tokens_per_batch documents_per_query auto_find_batch_size train_sampling_strategy length_column_name"),
    (WEIGHTS, "dataloader_drop_last dataloader_in_order remove_unused_columns label_names load_best_model_at_end"),
    # how numbers are computed
    (WEIGHTS, "bf16 fp16 tf32 use_cpu attn_implementation activation_checkpointing activation_checkpointing_kwargs"),
    (WEIGHTS, "torch_compile torch_compile_backend torch_compile_mode fsdp fsdp_config deepspeed accelerator_config"),
    (WEIGHTS, "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend"),
    (DISTILLATION, "losses layer_map pooling task_weight gather_across_ranks projector_learning_rate"),
    (DISTILLATION, "teacher_cache teacher_cache_dtype"),
    # evaluation while training
    (DRAWS, "eval_strategy eval_steps eval_delay eval_on_start dataloader_persistent_workers"),
    (SELECTION, "metric_for_best_model greater_is_better save_strategy save_steps prediction_loss_only"),
    (SCORES, "per_device_eval_batch_size eval_do_concat_batches eval_use_gather_object"),
    (SCORES, "eval_accumulation_steps include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval"),
    (OUTPUT, "output_dir logging_strategy logging_steps logging_first_step logging_nan_inf_filter"),
    (OUTPUT, "log_level log_level_replica log_on_each_node include_num_input_tokens_seen disable_tqdm"),
    (OUTPUT, "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"),
    (OUTPUT, "save_total_limit save_only_model save_on_each_node debug skip_memory_metrics"),
    (OUTPUT, "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision"),
    (MACHINE, "dataloader_num_workers dataloader_pin_memory"),
    (MACHINE, "dataloader_prefetch_factor dataloader_multiprocessing_context"),
    (MACHINE, "torch_empty_cache_steps ddp_timeout use_cache"),
    (RESUMING, "ignore_data_skip restore_callback_states_from_checkpoint"),
    (SCRIPTS, "do_train do_eval do_predict resume_from_checkpoint local_rank"),
    (OLD_NAMES, "gradient_checkpointing gradient_checkpointing_kwargs"),
    (MEANS, "average_tokens_across_devices"),
    (Judgement("", "without effect", "use_liger_kernel is refused"), "liger_kernel_config"),
    (_refused("the loss is the model's own, without smoothing"), "label_smoothing_factor"),
    (_refused("its kernels are for decoders, and would not be applied"), "use_liger_kernel"),
    (
        _refused("training ends with a checkpoint on SIGTERM without it, which this one would break"),
        "enable_jit_checkpoint",
    ),
    (_refused("losses compare whole samples, which it would cut apart"), "parallelism_config"),
]
ARGUMENTS = {name: judgement for judgement, names in GROUPS for name in names.split()}

FOLLOWERS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)  # schedules that follow the scores

# what scores depend on beside the model and the data
SCORING = (
    *("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "use_cpu", "full_determinism"),
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config"),
)


def refusals(args: ITRDArguments) -> dict[str, str]:
    """The arguments that are set but refused, each with the reason."""
    refused = [name for name, judgement in ARGUMENTS.items() if judgement.handling == "refused"]
    return {name: ARGUMENTS[name].reason for name in refused if getattr(args, name, None)}


def selects(args: ITRDArguments) -> bool:
    """Whether scores on the evaluation data decide the weights."""
    return bool(args.load_best_model_at_end) or args.lr_scheduler_type in FOLLOWERS


def training_values(args: ITRDArguments, distils: bool = True) -> dict[str, Any]:
    """The arguments that decide a model's weights, and the number of processes.

    Args:
        distils: whether it has a teacher; of ``teacher_cache``, only the precision of the cached outputs decides.
    """
    deciding = {"weights", *(["distillation"] if distils else []), *(["selection"] if selects(args) else [])}
    names = {name for name, judgement in ARGUMENTS.items() if judgement.decides in deciding}
    names |= {name for name in _changed(args) if name in ARGUMENTS and ARGUMENTS[name].decides == "draws"}
    if selects(args):  # as in fingerprints of earlier versions
        names |= {"eval_strategy", "eval_steps", "eval_delay"}
    values = {name: _value(name, value) for name, value in args.to_dict().items() if name in names}
    values |= _set_unjudged(args)
    dtype = values.pop("teacher_cache_dtype", None)
    if distils and values["teacher_cache"] != "off":
        values["teacher_cache"] = dtype
    if args.documents_per_query is None:  # which the values of earlier versions lack
        del values["documents_per_query"]
    values["world_size"] = args.world_size
    return values


def scoring_values(args: ITRDArguments) -> dict[str, Any]:
    """The arguments that decide a model's scores."""
    return {name: _value(name, getattr(args, name)) for name in SCORING} | _set_unjudged(args)


def _value(name: str, value: Any) -> Any:
    """The deciding part of a value: a file's content, and the settings that differ from their defaults."""
    if name == "deepspeed" and isinstance(value, str) and Path(value).is_file():
        return json.loads(Path(value).read_text(encoding="utf-8"))
    if name == "accelerator_config":
        config = value.to_dict() if isinstance(value, AcceleratorConfig) else value or {}
        usual = AcceleratorConfig().to_dict()
        return {key: item for key, item in config.items() if item != usual.get(key)} or None
    return value


def _set_unjudged(args: ITRDArguments) -> dict[str, Any]:
    """The arguments that are set and that the table lacks."""
    return {name: value for name, value in _changed(args).items() if name not in ARGUMENTS}


def _changed(args: ITRDArguments) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    defaults = defaults_of(args)
    return {name: value for name, value in args.to_dict().items() if value != defaults[name]}
