"""What a run is asked for: task, models and data, and how it trains."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from itrd_nlp.cache_folders import check_teacher_cache
from itrd_nlp.errors import UserError

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
# where a run writes and what it publishes: a recipe, which may be somebody else's, does not say
PLACES = ("output_dir", "shared_dir", "logging_dir", "deepspeed", "push_to_hub", "hub_", "trackio_")
CACHE_DTYPES = ["float32", "float16", "bfloat16"]


@dataclass
class RunArguments:
    """What one experiment is made of: task, models, data. How it trains stands in :class:`ITRDArguments`."""

    task: str = field(default="squad", metadata={"help": "Name of the task; see itrd_nlp.task.TASKS."})
    teacher: Json = field(
        default=None,
        metadata={
            "help": "Folder or Hub id; without a task head it is fine-tuned first. A mapping is a new model's config; "
            "for images also {timm: NAME, checkpoint: FILE, class_names: [...], model_args: {...}}."
        },
    )
    teacher_config: Json = field(
        default=None,
        metadata={
            "help": "Config fields that a teacher gets that is fine-tuned first, e.g. its dropout; a student cut out "
            "of it inherits them."
        },
    )
    teacher_training: Json = field(
        default=None, metadata={"help": "Training arguments that differ while the teacher is fine-tuned."}
    )
    shared_dir: str = field(
        default="runs/shared",
        metadata={"help": "Where fine-tuned teachers, students without distillation and scores are kept for reuse."},
    )
    student: Json = field(
        default=None,
        metadata={
            "help": "{from: teacher | folder | Hub id, layers: even:3, ...}; a folder or Hub id; or a new config. For "
            "images a name of timm, too."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Start afresh where output_dir holds another run."})
    tokenizer: str | None = field(default=None, metadata={"help": "Folder or Hub id; the teacher's by default."})
    baseline: bool = field(default=True, metadata={"help": "Also train the same student without distillation."})
    baseline_training: Json = field(
        default=None,
        metadata={"help": "Training arguments that differ for it, e.g. the rate it does best at."},
    )
    label: str | None = field(default=None, metadata={"help": "What tables call the run; its losses by default."})
    latency: bool = field(default=True, metadata={"help": "Also measure the latency of teacher and student."})
    dataset: str | None = field(default=None, metadata={"help": "Hub id of a dataset, e.g. rajpurkar/squad."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Which of its data sets, e.g. sst2 of nyu-mll/glue."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of texts, or of words; text, sentence, sentence1, ... by default."}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of second texts, with text_column."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of classes, tags or scores; label, labels, tags or score by default."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Official JSON, or CSV, parquet, JSON lines; parquet or a folder of images."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use so many training examples: the first, of images from all over."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use so many validation examples, as above."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a window, question included; 384, or what the tokenizer takes."}
    )
    doc_stride: int | None = field(
        default=None, metadata={"help": "Tokens that neighbouring windows share; a third of max_length."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise; this one by default."})
    n_best: int = field(default=20, metadata={"help": "Start and end candidates a window."})
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of the longest answer."})
    null_threshold: float = field(default=0.0, metadata={"help": "SQuAD 2: no answer when it leads by more than this."})

    def __post_init__(self) -> None:
        self.teacher_config = _mapping(self.teacher_config, "teacher_config")
        self.teacher_training = _mapping(self.teacher_training, "teacher_training")
        self.baseline_training = _mapping(self.baseline_training, "baseline_training")
        check_places(self.teacher_training, "teacher_training")
        check_places(self.baseline_training, "baseline_training")
        self.teacher = _from_json(self.teacher, "teacher")
        self.student = _from_json(self.student, "student") or {}
        for name in ("teacher", "student"):
            if not isinstance(getattr(self, name), str | dict | None):
                raise UserError(f"{name} is {getattr(self, name)!r}: expected a name or {MAPPINGS[name]}")
        for name in ("max_train_samples", "max_eval_samples", "num_proc"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: expected 1 or more")


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
        self.losses = _mapping(self.losses, "losses")
        if isinstance(self.layer_map, str) and self.layer_map.startswith("["):
            self.layer_map = _from_json(self.layer_map, "layer_map")
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


def computes_bf16(use_cpu: bool = False) -> bool:
    """Whether the device computes in bfloat16 by itself; elsewhere bf16 is emulated and slower than fp32."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def check_places(values: Mapping[str, Any], source: str) -> None:
    """Raise :class:`UserError` where a recipe, or a mapping in it, says where to write or what to publish."""
    folder = str(values.get("teacher_cache", "off")).lower() not in {*YAML_WORDS, *YAML_WORDS.values()}
    for key in [key for key in values if str(key).startswith(PLACES)] + ["teacher_cache"] * folder:
        raise UserError(
            f"{source}: {key}: expected on the command line alone, where you say what is written and "
            f"published; add --{key} there"
        )


def _from_json(value: Any, name: str) -> Any:
    if isinstance(value, str) and (value[:1] in ("{", "[", '"') or value == "null"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is {value!r}: expected JSON ({error})") from None
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    value = _from_json(value, name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}: expected a mapping such as {MAPPINGS[name]}")
    return value or {}
