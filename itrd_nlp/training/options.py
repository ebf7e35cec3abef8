"""The arguments that distillation adds to ``TrainingArguments``, and the defaults it changes; imports no torch."""

import json
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from itrd_nlp.utils.errors import UserError

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
class DistillationOptions:
    """The fields of ITRDArguments that ``TrainingArguments`` lacks or gives another default."""

    losses: Json = field(
        default_factory=lambda: {"itrd": {}},
        metadata={
            "help": 'Losses and their options, e.g. {"itrd": {"alpha": 1.01}}; {} does not distil, and '
            "--losses.kd null removes one of several."
        },
    )
    layer_map: Json = field(
        default="even",
        metadata={
            "help": "Matched layers: even, last, or pairs [[teacher, student], ...]; 0 is the embeddings. An "
            "image classifier's are its stages, then the input of its classifier."
        },
    )
    pooling: str = field(
        default="mean", metadata={"help": "How token vectors become samples: mean, cls, tokens, tokens:32, all_tokens."}
    )
    task_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss on the labels; with 0, the training data needs no labels."}
    )
    teacher_cache: str = field(
        default="auto",
        metadata={"help": "Where the teacher's outputs are cached: auto (beside the Hub's cache), off, or a folder."},
    )
    teacher_cache_dtype: str = field(
        default="float16",
        metadata={"help": "Precision of the cached outputs.", "choices": CACHE_DTYPES},
    )
    projector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the losses' own parameters (projectors); learning_rate by default."},
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs after which the learning rate drops to a tenth, instead of lr_scheduler_type. A recipe's "
            "milestones scale with num_train_epochs; null removes them."
        },
    )
    decay_all: bool = field(
        default=False,
        metadata={"help": "Also decay the weights of biases and normalisation layers, as image recipes do."},
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
            "help": "Tokens in a batch, padding included, instead of per_device_train_batch_size examples. A batch "
            "holds texts of similar length, the same in every epoch."
        },
    )
    documents_per_query: int | None = field(
        default=None,
        metadata={
            "help": "For rerankers: the most documents of one query in a batch; if a query has more, each epoch draws "
            "anew. By default as many as fit into a batch."
        },
    )
    gather_across_ranks: bool = field(
        default=False,
        metadata={"help": "Compute a batch's statistics over the samples of all processes, not each on its own."},
    )
    nonfinite: str = field(
        default="stop",
        metadata={
            "help": "What to do when a loss or gradient is not finite: stop the run, or skip and count the step.",
            "choices": NONFINITE,
        },
    )
    output_dir: str | None = field(default="runs/itrd", metadata={"help": "Folder for everything the run writes."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the loss and its terms."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep while training."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write a checkpoint, from which a killed run resumes."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; by default where the hardware supports it."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide non-finite losses from the logs."})
    ddp_timeout: int = field(
        default=86400,
        metadata={"help": "Seconds that processes wait for each other, such as for the first one's tokenisation."},
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Order of the training examples.", "choices": ["random", "sequential", "group_by_length"]},
    )


def from_json(value: Any, name: str) -> Any:
    """Parse a JSON value that came as text; other values stay as they are."""
    if isinstance(value, str) and (value[:1] in ("{", "[", '"') or value == "null"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is {value!r}: expected JSON ({error})") from None
    return value


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    """A mapping, given as one or as JSON; None is an empty one."""
    value = from_json(value, name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}: expected a mapping such as {MAPPINGS[name]}")
    return value or {}


def defaults_of(arguments: Any) -> dict[str, Any]:
    """The defaults of a dataclass by the names of its fields."""
    return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(arguments)}
