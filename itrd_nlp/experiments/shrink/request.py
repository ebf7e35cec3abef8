"""What a search is asked for: the task, the recipe whose losses and rates it takes, and the arguments of its runs."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from itrd_nlp.experiments.compare import Run
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.output_folder import arguments_of
from itrd_nlp.experiments.parsing import parse, texts_of
from itrd_nlp.experiments.shrink.search import Candidate
from itrd_nlp.inference.saved_models import saved_task
from itrd_nlp.models.loading import load_config
from itrd_nlp.models.sentence_pooling import read_pooling
from itrd_nlp.models.weight_files import cached_path
from itrd_nlp.tasks.cells import is_bracketed
from itrd_nlp.tasks.reranking.rows import DOCUMENT_COLUMNS
from itrd_nlp.tasks.rows import CLASSES, DOCUMENTS, LAYOUTS, POSITIVES, QUERIES, SCORES, WORD_COLUMNS
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.command_line import underscored
from itrd_nlp.utils.errors import UserError, nearest
from itrd_nlp.utils.hashing import digest, file_digest, json_values

RECIPES = {  # task -> the recipe of its trainings: of squad the best in its table, of others see docs/families.md
    "squad": "squad-base/t3-best",
    "classification": "classify/l3-itrd-kd",
    "multilabel": "classify/l3-itrd-kd",
    "regression": "classify/l3-itrd-kd",
    "tagging": "tag/l3-itrd-kd",
    "reranking": "rerank/l3-itrd-mse",
    "embedding": "embed/l3-itrd-cosine",
}
SHORT_SHARE = 0.25  # share of the whole training after which students are compared
# learning rates at width 768: 4e-4 is the best of three that were tried for students (docs/base.md)
TEACHER_RATE, STUDENT_RATE, RATED_WIDTH = 5e-5, 4e-4, 768
SET_BY_SEARCH = (  # arguments of its runs that a search sets
    *("teacher", "student", "task", "output_dir", "shared_dir", "overwrite"),
    *("baseline", "latency", "keep_projection", "label"),
)
WEIGHTS = ("*.safetensors", "*.bin")  # files of a model's folder


@dataclass
class Request:
    """One search: arguments of :func:`itrd_nlp.experiments.shrink.shrink.shrink`; ``words`` are those of all runs."""

    model: str
    train_file: str
    validation_file: str
    output: Path
    test_file: str | None = None
    task: str | None = None
    words: Sequence[str] = ()
    threads: int | None = None
    config: PretrainedConfig = field(init=False)
    tokenizer: str = field(init=False)  # folder or Hub id of the teacher's
    corpus: list[str] = field(init=False)  # files of further texts, whose pieces count for smaller vocabularies
    has_head: bool = field(init=False)  # whether the model needs no training
    trains_head: bool = field(init=False)  # whether KD is among the losses anyway
    pooling: str | None = field(init=False)  # that makes a sentence encoder's embeddings, where its folder says so

    def __post_init__(self) -> None:
        self.words = underscored(self.words)
        for word in self.words:
            name = word.partition("=")[0].removeprefix("--").partition(".")[0]
            if word.startswith("--") and name in SET_BY_SEARCH:
                raise UserError(f"--{name} with `itrd shrink`: the search decides it; leave it out")
            if word.startswith("--") and name.startswith(("push_to_hub", "hub_")):
                raise UserError(
                    f"--{name} with `itrd shrink`: it would publish every student that is tried; leave it out, and "
                    f"publish the chosen one afterwards: hf upload REPOSITORY {self.output / 'student'}"
                )
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads {self.threads}: expected 1 or more")
        self.config = load_config(self.model)
        fields, kind = {*self.config.to_dict(), *self.config.attribute_map}, self.config.model_type
        if "image_size" in fields and saved_task(self.model) != "images":
            raise UserError(f"{self.model} is a {kind} model, which reads images: expected a text encoder")
        if missing := {"hidden_size", "num_hidden_layers"} - fields:
            raise UserError(
                f"{self.model} is a {kind} model, whose config has no {min(missing)}: expected a text encoder with "
                "layers of one width"
            )
        label_column = texts_of(self.words).get("--label_column")
        self.task = self.task or infer_task(self.model, self.validation_file, label_column)
        self.has_head = saved_task(self.model) == self.task
        if self.task not in RECIPES:
            raise UserError(f"task {self.task!r}: expected one of {', '.join(RECIPES)}{nearest(self.task, RECIPES)}")
        run_args, training_args = parse(RECIPES[self.task], self.words)
        if not training_args.losses:
            raise UserError(
                "losses {} with `itrd shrink`: expected a loss, as students learn from their teacher; `itrd distill` "
                "trains on labels alone"
            )
        self.trains_head = "kd" in training_args.losses
        self.tokenizer, self.corpus = run_args.tokenizer or self.model, run_args.corpus or []
        self.pooling = read_pooling(self.model) if self.task == "embedding" else None

    def arguments(self, *words: str, teacher: str | None = None) -> tuple[RunArguments, ITRDArguments]:
        """Arguments of a run, with further words."""
        is_trained = teacher is not None or self.has_head
        dropout = [name for name in _dropout(self.config) if name.startswith("attention")]  # slow on CPUs
        run_args, training_args = parse(
            RECIPES[str(self.task)],
            [
                *(
                    f"--task={self.task}",
                    f"--teacher={teacher or self.model}",
                    f"--teacher_config={json.dumps({} if is_trained else dict.fromkeys(dropout, 0))}",
                ),
                *(f"--train_file={self.train_file}", f"--validation_file={self.validation_file}"),
                *(f"--shared_dir={self.output / 'shared'}", "--teacher_cache=auto"),
                *("--baseline=false", "--latency=false", "--save_total_limit=1"),
                f"--learning_rate={STUDENT_RATE * min(1, RATED_WIDTH / self.config.hidden_size)}",
                f"--teacher_training.learning_rate={TEACHER_RATE * RATED_WIDTH / self.config.hidden_size}",
                "--baseline_training={}",
                *(["--task_weight=0"] if self.task == "squad" and self.config.hidden_size < RATED_WIDTH else []),
                *([f"--pooling={self.pooling}"] if self.pooling else []),
                *self.words,
                f"--output_dir={self.output}",
                *words,
            ],
        )
        if run_args.student_spec.vocabulary is None:
            run_args = dataclasses.replace(run_args, corpus=None)  # it serves the students whose vocabulary is cut
        return run_args, training_args

    def run_of(self, candidate: Candidate, teacher: str, *, short: bool, **options: bool) -> Run:
        """The training of a student, the short or the whole one; ``options`` are arguments of the run."""
        folder = self.output / "runs" / candidate.name / ("short" if short else "whole")
        words = [*self.student(candidate), f"--output_dir={folder}", f"--label={candidate.name}"]
        words += [f"--{name}={str(value).lower()}" for name, value in options.items()]
        if short:
            whole = self.arguments()[1]
            steps = whole.max_steps > 0
            length = max(1, round(SHORT_SHARE * whole.max_steps)) if steps else SHORT_SHARE * whole.num_train_epochs
            words.append(f"--{'max_steps' if steps else 'num_train_epochs'}={length}")
        return Run(f"{RECIPES[str(self.task)]} as {candidate.name}", *self.arguments(*words, teacher=teacher))

    def student(self, candidate: Candidate, **fields: Any) -> list[str]:
        """The words that describe a student. It learns without dropout, as the students of the measured recipes do."""
        words = candidate.words(self.config, **dict.fromkeys(_dropout(self.config), 0), **fields)
        cuts_head = self.task == "squad" and (candidate.hidden_size or candidate.vocabulary)
        if cuts_head and not self.trains_head:
            # ITRD alone trains neither a head that was cut, nor which piece of a word an answer starts or ends with
            words.append("--losses.kd.temperature=8")
        return words

    def values(self) -> dict[str, Any]:
        """What decides the students and their scores, as JSON values."""
        names = ("model", "train_file", "validation_file")
        values = {**arguments_of(*self.arguments()), **{name: str(getattr(self, name)) for name in names}}
        values |= {"training data": digest_of(self.train_file), "weights": digest_of(self.model)}
        return json_values(values)


def digest_of(source: str) -> str | None:
    """Digest of a file, or of the weights in a folder; None for what is neither, such as a Hub id."""
    path = Path(source)
    files = [path] if path.is_file() else sorted(each for name in WEIGHTS for each in path.glob(name))
    return digest([file_digest(each) for each in files]) if files else None


def _dropout(config: PretrainedConfig) -> list[str]:
    return [
        name for name, value in config.to_dict().items() if "dropout" in name and isinstance(value, float) and value
    ]


def infer_task(model: str, validation_file: str, label_column: str | None = None) -> str:
    """The task of a model's head; of a model without one, that of the columns of its validation data.

    Pairs of texts with a score are for embeddings where the model is a sentence encoder, and for regression otherwise.
    A head of one output, as regression has it, is for reranking where the columns are of queries and documents.

    Args:
        label_column: of the labels, where it has no common name.

    Raises:
        UserError: an image classifier, or neither a head nor labels.
    """
    task = saved_task(model)
    if task == "images":
        raise UserError(f"{model} classifies images: expected a text encoder; distil images with `itrd distill`")
    if task not in ("embedding", "regression", None):
        return task
    columns = read_table(validation_file, "validation").columns
    names = {*columns}
    has_answers = {"question", "context"} <= names
    relevance, tags = ({label_column} if label_column else {*kind.labels} for kind in (DOCUMENT_COLUMNS, WORD_COLUMNS))
    has_documents = names & {*POSITIVES} or (names & {*DOCUMENTS} and names & relevance)
    if not has_answers and names & {*QUERIES} and has_documents:
        return "reranking"
    if task == "regression":
        return task
    if has_answers:
        return "squad"
    if names & {"tokens", "words"} and names & tags:
        return "tagging"
    label, labels = _labels_of(columns, label_column)
    layout = next((layout for layout in LAYOUTS if names >= {*layout}), None)
    if layout is None or not labels:
        raise UserError(
            f"{model} has no head, and '{validation_file}' no texts with labels (its columns: {', '.join(columns)}): "
            "expected one of them; take a fine-tuned model, or name the task (--task) and the columns (--label_column)"
        )
    if any(is_bracketed(value) if isinstance(value, str) else isinstance(value, list | tuple) for value in labels):
        return "multilabel"
    if label in {*SCORES.labels} - {*CLASSES.labels} or _are_scores(labels):
        return "embedding" if len(layout) == 2 and cached_path(model, "modules.json") is not None else "regression"
    return "classification"


def _labels_of(columns: Mapping[str, Sequence[Any]], named: str | None) -> tuple[str, list[Any]]:
    """The column of labels, and those that are there; an empty name without such a column."""
    known = dict.fromkeys((*SCORES.labels, *CLASSES.labels) if named is None else (named,))
    values = {name: [v for v in columns[name][:] if v not in (None, "")] for name in known if name in columns}
    # a score beside names of classes is how sure somebody was of them
    classes = [name for name in CLASSES.labels if values.get(name) and not _are_numbers(values[name])]
    label = next(iter([*classes, *values]), "")
    return label, values.get(label, [])


def _are_numbers(labels: Sequence[Any]) -> bool:
    """Whether labels can all be read as numbers."""
    try:
        return all(math.isfinite(float(label)) for label in labels)
    except (TypeError, ValueError):
        return False


def _are_scores(labels: Sequence[Any]) -> bool:
    """Whether labels are numbers, and not all of them whole."""
    with suppress(TypeError, ValueError):
        return any(float(label) % 1 for label in labels)
    return False
