"""A task is the data, the head and the metric of one benchmark."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase


class Task(Protocol):
    """What a run needs to know of a benchmark; :class:`itrd_nlp.tasks.question_answering.task.SquadTask` is one."""

    modality: str  # "text" or "image": how its models are named and made
    tokenizer: Any  # None for images
    model_class: Any  # the AutoModelFor... that carries the head
    collator: Any
    max_length: int  # tokens of the longest example; 0 for images
    metric_names: tuple[str, ...]  # what a table shows
    class_names: list[str]  # none of question answering and embeddings
    config_fields: Mapping[str, Any]  # of texts: what a model's config must say for its head to fit
    labelled: bool  # whether training examples carry labels
    preprocessing: Any  # of images

    @property
    def train_dataset(self) -> Any: ...

    @property
    def eval_dataset(self) -> Any: ...

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]: ...

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `compute_metrics` returns, and of each evaluation example the last metric in percent, or
        what it is computed from where it is no mean over the examples: see ``experiments.intervals.STATISTICS``."""
        ...

    def processor(self, model: PreTrainedModel) -> Any:
        """The tokenizer or image processor that is saved beside a model; None where its config says all."""
        ...

    def files(self, model: PreTrainedModel) -> dict[str, Any]:
        """Files to write beside a model: their path below its folder -> JSON values."""
        ...

    def scoring(self) -> list[Any]:
        """JSON values that decide the scores of given logits: the references, and how answers are chosen."""
        ...

    def summary(self) -> dict[str, int]:
        """How many examples are trained and evaluated on, for the record."""
        ...

    def describe(self) -> list[str]:
        """What was understood of the data, a line for each split: where from, how many rows, which classes."""
        ...


class ScoredTask(ABC):
    """What tasks of all kinds share."""

    @abstractmethod
    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """As of :class:`Task`."""

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The scores of :meth:`score`."""
        return self.score(prediction)[0]

    def files(self, model: PreTrainedModel) -> dict[str, Any]:
        """None beside the model's own."""
        return {}


class TextTask(ScoredTask):
    """What tasks on texts share."""

    tokenizer: PreTrainedTokenizerBase

    def processor(self, model: PreTrainedModel) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer
