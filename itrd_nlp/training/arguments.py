"""What a run is asked for: task, models and data, and how it trains."""

import json
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, get_scheduler

from itrd_nlp.distillation.cache_folders import check_teacher_cache
from itrd_nlp.utils.environment import computes_bf16
from itrd_nlp.utils.errors import UserError, first_line

if TYPE_CHECKING:
    Json = Any
else:  # a mapping in YAML and in Python, JSON on the command line
    Json = dict[str, Any] | str | None

MAPPINGS = {  # arguments that hold a mapping, each with an example
    "losses": "{itrd: {alpha: 1.01}, kd: {temperature: 8}}",
    "student": '{from: teacher, layers: "even:3"}',
    "teacher": "{model_type: bert, num_hidden_layers: 4}",
    "teacher_config": "{attention_probs_dropout_prob: 0}",
    "teacher_training": "{num_train_epochs: 3, learning_rate: 3e-5}",
    "baseline_training": "{learning_rate: 3e-4}",
}

YAML_WORDS = {"false": "off", "no": "off", "none": "off", "": "off", "true": "auto"}  # YAML reads a bare off as False
NONFINITE = ["stop", "skip"]
CACHE_DTYPES = ["float32", "float16", "bfloat16"]


@dataclass(repr=False)  # TrainingArguments' own hides tokens
class ITRDArguments(TrainingArguments):
    """``TrainingArguments`` with what distillation adds; see Trainer for the rest.

    Differences to Trainer's defaults: bf16 where the hardware computes in it, batches of similar length, a log every 50
    steps, two checkpoints, written at the end of each epoch, and no loss that is not finite.
    """

    output_dir: str | None = field(default="runs/itrd", metadata={"help": "Where everything of a run is written."})
    losses: Json = field(
        default_factory=lambda: {"itrd": {}},
        metadata={"help": 'Losses and their options, e.g. {"itrd": {"alpha": 1.01}}; {} does not distil.'},
    )
    layer_map: Json = field(
        default="even",
        metadata={
            "help": "Matched layers: even, last, or pairs [[teacher, student], ...]; 0 is the embeddings. An image "
            "classifier's are its stages, then what enters its classifier."
        },
    )
    pooling: str = field(
        default="mean", metadata={"help": "(batch, length, d) to (n, d): mean, cls, tokens, tokens:32, all_tokens."}
    )
    task_weight: float = field(default=1.0, metadata={"help": "Weight of the gold labels; 0 needs none."})
    teacher_cache: str = field(
        default="auto",
        metadata={"help": "Where the teacher's answers are kept: auto (beside the Hub's cache), off, or a folder."},
    )
    teacher_cache_dtype: str = field(
        default="float16",
        metadata={"help": "Precision of the kept answers.", "choices": CACHE_DTYPES},
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak rate of what the losses train beside the student; learning_rate's."}
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs after which the rate falls to a tenth, instead of lr_scheduler_type; null: none. "
            "A recipe's keep their share of num_train_epochs."
        },
    )
    decay_all: bool = field(
        default=False, metadata={"help": "Decay biases and normalisations too, as recipes for images do."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How the student computes attention while it trains, e.g. sdpa, eager, flash_attention_2; eager is "
            "fastest on CPUs in bf16 up to some 200 tokens."
        },
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a batch, padding included, instead of per_device_train_batch_size examples; the same "
            "texts, of neighbouring lengths, meet in every epoch."
        },
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the loss and its terms."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a run that is killed can be continued from."})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16 autocast; by default where hardware has it."})
    gather_across_ranks: bool = field(
        default=False,
        metadata={"help": "Whether a batch's statistics are those of all processes' samples, not of each one's own."},
    )
    nonfinite: str = field(
        default="stop",
        metadata={
            "help": "Where a loss or gradient is not finite: stop the run, or skip the step and count it.",
            "choices": NONFINITE,
        },
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite from logs."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Order of the training examples.", "choices": ["random", "sequential", "group_by_length"]},
    )

    def __post_init__(self) -> None:
        self.losses = as_mapping(self.losses, "losses")
        if isinstance(self.layer_map, str) and self.layer_map.startswith("["):
            self.layer_map = from_json(self.layer_map, "layer_map")
        if self.task_weight < 0:
            raise UserError(f"task_weight is {self.task_weight}: expected 0 or more")
        self.teacher_cache = YAML_WORDS.get(str(self.teacher_cache).lower(), self.teacher_cache)
        check_teacher_cache(self.teacher_cache)
        if self.teacher_cache_dtype not in CACHE_DTYPES:
            raise UserError(f"teacher_cache_dtype is {self.teacher_cache_dtype!r}: expected one of {CACHE_DTYPES}")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.max_steps == 0:
            raise UserError("max_steps is 0: expected 1 or more, or -1 for num_train_epochs")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise UserError(f"num_train_epochs is {self.num_train_epochs}: expected more than 0")
        self.logging_nan_inf_filter |= self.nonfinite == "skip"
        if self.nonfinite not in NONFINITE:
            raise UserError(f"nonfinite is {self.nonfinite!r}: expected one of {NONFINITE}")
        if self.projector_learning_rate is not None and self.projector_learning_rate <= 0:
            raise UserError(f"projector_learning_rate is {self.projector_learning_rate}: expected a rate above 0")
        if self.lr_milestones and not all(0 < epoch < self.num_train_epochs for epoch in self.lr_milestones):
            raise UserError(
                f"lr_milestones {self.lr_milestones}: expected epochs between 0 and num_train_epochs "
                f"{self.num_train_epochs}"
            )
        if self.lr_milestones and (self.warmup_steps or self.lr_scheduler_type != "linear"):
            raise UserError(
                "lr_milestones with warmup_steps or lr_scheduler_type: expected one schedule; leave one out"
            )
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise UserError(f"tokens_per_batch is {self.tokens_per_batch}: expected 1 or more")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # Trainer refuses bf16 on a CPU that was not asked for
        if self.bf16 is None:
            self.bf16 = not self.fp16 and computes_bf16(self.use_cpu)
        if self.fp16 and self.use_cpu:
            raise UserError("fp16 on a CPU has no effect: use --bf16 true where the CPU has it, or neither")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        _check_schedule(self)
        _check_optimizer(self)


def _check_schedule(args: TrainingArguments) -> None:
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
            f"lr_scheduler_kwargs {args.lr_scheduler_kwargs}: expected its options ({first_line(error)})"
        ) from None


def _check_optimizer(args: TrainingArguments) -> None:
    """Raise :class:`UserError` for an optimizer that is not installed, or options that it cannot have."""
    if args.optim_target_modules:  # Trainer asks the model for those
        return
    from transformers import Trainer  # here: help lists arguments, and needs none

    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ValueError, TypeError, ImportError) as error:
        optim = getattr(args.optim, "value", args.optim)
        raise UserError(
            f"optim {optim} with optim_args {args.optim_args!r}: expected an optimizer that is installed, and options "
            f"as name=value ({first_line(error)})"
        ) from None


def from_json(value: Any, name: str) -> Any:
    if isinstance(value, str) and (value[:1] in ("{", "[", '"') or value == "null"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is {value!r}: expected JSON ({error})") from None
    return value


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    value = from_json(value, name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}: expected a mapping such as {MAPPINGS[name]}")
    return value or {}


def defaults_of(arguments: Any) -> dict[str, Any]:
    """The defaults of a dataclass by the names of its fields."""
    made = {f.name: f.default_factory for f in fields(arguments) if f.default_factory is not MISSING}
    return {f.name: made[f.name]() if f.name in made else f.default for f in fields(arguments)}
