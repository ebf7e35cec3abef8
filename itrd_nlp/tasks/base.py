"""A task is the data, the head and the metric of one benchmark."""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from itrd_nlp.tasks.calibration import calibrate
from itrd_nlp.tasks.metrics import logits_of
from itrd_nlp.utils.modeling import input_names, position_limit

TOKEN_TYPES = "token_type_ids"


class Task(ABC):
    """What a run needs from a benchmark; :class:`itrd_nlp.tasks.question_answering.task.SquadTask` is one."""

    modality = "text"  # or "image": how its models are named and made
    tokenizer: Any  # None for images
    model_class: Any  # the AutoModelFor... that carries the head
    collator: Any
    max_length: int  # tokens of the longest example; 0 for images
    train: Dataset | None
    validation: Dataset | None
    examples: str  # what the record calls them
    metric_names: tuple[str, ...]  # what a table shows
    further_metrics: tuple[str, ...] = ()  # that only some data has
    class_names: list[str]  # empty for question answering and embeddings
    config_fields: Mapping[str, Any]  # for texts: what a model's config must say for its head to fit
    labelled: bool  # whether training examples carry labels
    preprocessing: Any = None  # of images
    teacher_tokenizer: Any = None  # where the teacher has one of its own
    teacher_task: "Task | None" = None  # this task with the teacher's tokenizer, where the student has one of its own
    vocabulary: Any = None  # of the student, where it has fewer pieces than its source: see `experiments.vocabulary`
    saved_fields: Mapping[str, Any] = {}  # of the config, which other libraries read beside those of the head
    has_probabilities = False  # whether softmax or sigmoid make probabilities of its scores: see `calibration`
    one_score = False  # whether a head of two classes is read as one score, the log-odds of the second

    @property
    def for_teacher(self) -> "Task":
        """The task as the teacher is trained and scored on it."""
        return self.teacher_task or self

    @property
    @abstractmethod
    def train_dataset(self) -> Any: ...

    @property
    @abstractmethod
    def eval_dataset(self) -> Any: ...

    @abstractmethod
    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics in percent, and for each evaluation example the last metric, or what it is computed from where
        it is not a mean over the examples: see ``itrd_nlp.experiments.intervals.STATISTICS``."""

    def teacher_prediction(self) -> EvalPrediction | None:
        """What a teacher predicts whose outputs the validation data holds, to :meth:`score`; None where it has none."""
        return None

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of :meth:`score`."""
        return self.score(prediction)[0]

    def calibration(self, prediction: EvalPrediction) -> dict[str, Any] | None:
        """Of a task that has probabilities, a temperature for them and how well they fit the labels, see
        :func:`itrd_nlp.tasks.calibration.calibrate`; None for too few examples."""
        if not self.has_probabilities:
            return None
        return calibrate(logits_of(prediction.predictions), np.asarray(prediction.label_ids))

    def processor(self, model: PreTrainedModel) -> Any:
        """The tokenizer or image processor that is saved beside a model; None where its config says all.

        A tokenizer of more tokens than the model has positions, as a larger teacher's may be, is saved with its limit;
        one that makes token types which the model does not take, as BERT's beside a DistilBERT, without them.
        """
        tokenizer, limit = self.tokenizer, position_limit(model)
        if tokenizer is None:
            return None
        names = tokenizer.model_input_names
        has_types = TOKEN_TYPES in names and TOKEN_TYPES not in input_names(model)
        is_longer = limit < min(tokenizer.model_max_length, sys.maxsize)
        if has_types or is_longer:
            tokenizer = copy.deepcopy(tokenizer)
        if has_types:
            names = [name for name in names if name != TOKEN_TYPES]
            tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        if is_longer:
            tokenizer.model_max_length = limit
        return tokenizer

    def files(self, model: PreTrainedModel) -> dict[str, Any]:
        """Further files to write beside a model: their path in its folder -> JSON values."""
        return {}

    @abstractmethod
    def scoring(self) -> list[Any]:
        """JSON values that decide the scores of given outputs: of texts, the examples, and how answers are chosen."""

    @property
    def eval_examples(self) -> int:
        """How many examples a model is scored on: questions, not their windows."""
        return len(self.validation or ())

    def summary(self) -> dict[str, int]:
        """How many examples are trained and evaluated on, for the record."""
        splits = {"training": self.train, "validation": self.validation}
        return {f"{name} {self.examples}": len(data) for name, data in splits.items() if data is not None}

    @abstractmethod
    def describe(self) -> list[str]:
        """A line for each split: its source, how many examples it has, and which classes."""
