"""What one experiment is made of: task, models and data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrd_nlp.experiments.student_spec import StudentSpec
from itrd_nlp.training.options import MAPPINGS, YAML_WORDS, Json, as_mapping, from_json
from itrd_nlp.utils.errors import UserError

# where a run writes and what it publishes: a recipe, which may be somebody else's, does not say
COMMAND_LINE_ONLY = ("output_dir", "shared_dir", "logging_dir", "deepspeed", "push_to_hub", "hub_", "trackio_")
TASK_HELP = (
    "squad, classification, multilabel, regression, tagging, embedding, reranking, images, cifar10, cifar100, or toy."
)


@dataclass
class RunArguments:
    """What one experiment is made of: task, models, data. How it trains stands in :class:`ITRDArguments`."""

    task: str = field(default="squad", metadata={"help": TASK_HELP})
    teacher: Json = field(
        default=None,
        metadata={
            "help": "Folder or Hub id; without a task head it is fine-tuned first. A mapping is a new model's config; "
            "for images also {timm: NAME, checkpoint: FILE, class_names: [...], model_args: {...}}. None if the "
            "training file holds its outputs: teacher_logits, teacher_probs, teacher_score or teacher_embedding."
        },
    )
    teacher_config: Json = field(
        default=None,
        metadata={
            "help": "Config fields of a teacher that is fine-tuned first, e.g. its dropout; students that are cut from "
            "it inherit them."
        },
    )
    teacher_training: Json = field(
        default=None, metadata={"help": "Training arguments that differ while the teacher is fine-tuned."}
    )
    shared_dir: str = field(
        default="runs/shared",
        metadata={"help": "Folder of fine-tuned teachers, undistilled students and scores, for reuse by other runs."},
    )
    student: Json = field(
        default=None,
        metadata={
            "help": "{from: teacher | folder | Hub id, layers: even:3 | best:3, hidden_size: 192, vocabulary: 8000, "
            "...}; a folder or Hub id; or a new model's config. For images also the name of a timm model."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Start over if output_dir holds another run."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id; by default the teacher's or, without one, the student's."}
    )
    corpus: list[str] | None = field(
        default=None,
        metadata={
            "help": "More texts for choosing the tokens of a smaller student vocabulary, besides the training texts: "
            "text files with one text per line, or any format of train_file."
        },
    )
    keep_projection: bool = field(
        default=False,
        metadata={
            "help": "Sentence embeddings: save the projection of cosine or vkd to the teacher's width with the "
            "student, and score its queries against the teacher's documents too."
        },
    )
    baseline: bool = field(default=True, metadata={"help": "Also train the same student without distillation."})
    baseline_training: Json = field(
        default=None,
        metadata={"help": "Training arguments that differ for the baseline, e.g. its best learning rate."},
    )
    label: str | None = field(default=None, metadata={"help": "What tables call the run; its losses by default."})
    latency: bool = field(default=True, metadata={"help": "Also measure the latency of teacher and student."})
    dataset: str | None = field(default=None, metadata={"help": "Hub id of a dataset, e.g. rajpurkar/squad."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, e.g. sst2 of nyu-mll/glue."})
    text_column: str | None = field(
        default=None, metadata={"help": "Column of texts or words; text, sentence, sentence1, ... by default."}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of second texts, with text_column."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of classes, tags or scores; label, labels, tags or score by default."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "SQuAD JSON, CSV, TSV, parquet or JSON lines; for images parquet or a folder."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Data to validate on, in the same formats."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on up to this many examples: the first, or images spread over the data."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Score up to this many validation examples, chosen the same way."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest input in tokens. By default 384 for question answering, what an embedder's folder says, "
            "256 for other texts; or the tokenizer's limit if that is lower."
        },
    )
    doc_stride: int | None = field(
        default=None, metadata={"help": "Tokens that neighbouring windows share; a third of max_length by default."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise; this one by default."})
    n_best: int = field(default=20, metadata={"help": "Start and end candidates per window."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer in tokens."})
    null_threshold: float = field(default=0.0, metadata={"help": "SQuAD 2: lead above which 'no answer' is returned."})

    @property
    def student_spec(self) -> StudentSpec:
        """What ``student`` says, read."""
        return StudentSpec.read(self.student)

    def __post_init__(self) -> None:
        self.shared_dir = str(Path(self.shared_dir).expanduser())  # as TrainingArguments does with output_dir
        self.teacher_config = as_mapping(self.teacher_config, "teacher_config")
        self.teacher_training = as_mapping(self.teacher_training, "teacher_training")
        self.baseline_training = as_mapping(self.baseline_training, "baseline_training")
        check_command_line_only(self.teacher_training, "teacher_training")
        check_command_line_only(self.baseline_training, "baseline_training")
        self.teacher = from_json(self.teacher, "teacher")
        self.student = from_json(self.student, "student") or {}
        for name in ("teacher", "student"):
            if not isinstance(getattr(self, name), str | dict | None):
                raise UserError(f"{name} is {getattr(self, name)!r}: expected a name or {MAPPINGS[name]}")
        for name in ("max_train_samples", "max_eval_samples", "num_proc"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: expected 1 or more")


def check_command_line_only(values: Mapping[str, Any], source: str) -> None:
    """Raise :class:`UserError` where a recipe, or a mapping in it, says where to write or what to publish."""
    refused = [key for key in values if str(key).startswith(COMMAND_LINE_ONLY)]
    if str(values.get("teacher_cache", "off")).lower() not in {*YAML_WORDS, *YAML_WORDS.values()}:
        refused.append("teacher_cache")  # a folder
    if refused:
        key = refused[0]
        raise UserError(
            f"{source}: {key}: expected on the command line alone, where you say what is written and "
            f"published; add --{key} there"
        )
