"""A task is the data, the head and the metric of one benchmark."""

from collections.abc import Callable
from typing import Any, Protocol

from datasets import Dataset
from transformers import EvalPrediction

from itrd_nlp.errors import UserError
from itrd_nlp.text.squad import SquadTask, load_squad
from itrd_nlp.text.toy import build_tokenizer, generate

OPTIONS = (  # the arguments of a run that its task takes
    "dataset",
    "train_file",
    "validation_file",
    "max_train_samples",
    "max_eval_samples",
    "max_length",
    "doc_stride",
    "num_proc",
    "n_best",
    "max_answer_length",
    "null_threshold",
)


class Task(Protocol):
    """What a run needs to know of a benchmark; :class:`itrd_nlp.text.squad.SquadTask` is one."""

    tokenizer: Any
    model_class: Any  # the AutoModelFor... that carries the head
    collator: Any
    max_length: int  # tokens of the longest example
    metric_names: tuple[str, ...]  # what a table shows

    @property
    def train_dataset(self) -> Dataset | None: ...

    @property
    def eval_dataset(self) -> Dataset | None: ...

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]: ...

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[float]]]:
        """What `compute_metrics` returns, and the metrics of each evaluation example that have one, in percent."""
        ...

    def scoring(self) -> list[Any]:
        """JSON values that decide the scores of given logits: the references, and how answers are chosen."""
        ...

    def summary(self) -> dict[str, int]:
        """How many examples are trained and evaluated on, for the record."""
        ...


def squad_task(
    tokenizer: Any,
    *,
    dataset: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    **options: Any,
) -> SquadTask:
    """Question answering on SQuAD v1.1, v2.0 or files of that kind; ``options`` are those of :class:`SquadTask`."""
    if tokenizer is None:
        raise UserError(
            "task squad with a teacher built from a config: expected a tokenizer too; add --tokenizer FOLDER"
        )
    train, validation = load_squad(dataset, train_file, validation_file)
    return SquadTask(tokenizer, _first(train, max_train_samples), _first(validation, max_eval_samples), **options)


def toy_task(
    tokenizer: Any = None,
    *,
    dataset: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    **options: Any,
) -> SquadTask:
    """Question answering on generated stories, with the toy's own tokenizer unless one is given: no download."""
    given = [name for name in (dataset, train_file, validation_file) if name]
    if given:
        raise UserError(f"task toy with {given[0]!r}: it makes its own data; use --task squad for yours")
    train, validation = generate(max_train_samples or 4000, seed=1), generate(max_eval_samples or 500, seed=2)
    return SquadTask(tokenizer or build_tokenizer(), train, validation, **options)


def _first(data: Dataset | None, count: int | None) -> Dataset | None:
    return data if data is None or count is None else data.select(range(min(count, len(data))))


# name -> function(tokenizer, **data and options) -> Task
TASKS: dict[str, Callable[..., Any]] = {"squad": squad_task, "toy": toy_task}
