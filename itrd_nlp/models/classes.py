"""The classes of a head: their names, their order, and the config fields that hold them."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from itrd_nlp.models.onnx_model import folder_of
from itrd_nlp.models.weight_files import cached_json
from itrd_nlp.utils.console import warn_once
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import INDEPENDENT
from itrd_nlp.utils.tokenizers import LOADING_ERRORS

# what loading a config raises, of one that holds something else
CONFIG_ERRORS = (*LOADING_ERRORS, RuntimeError, LookupError, AttributeError, StrictDataclassError)

# config fields of a reranker whose scores are the logits themselves: sentence-transformers, from version 4 on, reads
# which function a cross-encoder's scores pass, and would take the sigmoid
RAW_SCORES = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
LIBRARY_FILE = "config_sentence_transformers.json"  # where it keeps prompts, and from version 5.4 on that function
PRETRAINED = ("ForMaskedLM", "ForPreTraining")  # ends of architectures whose heads are for pre-training alone

UNNAMED = re.compile(r"(LABEL_)?\d+")  # a class that nobody has named
NUMERIC_NAME = re.compile(r"(-?\d+)(?:\.0+|(\.\d+))?")  # its whole part, and its decimals unless they are 0
TEMPERATURE = "calibration_temperature"  # config field: probabilities are of the logits divided by it


TASK_OF_HEAD = {  # by the end of an architecture's name
    "ForQuestionAnswering": "squad",
    "ForQuestionAnsweringSimple": "squad",  # XLNet's, XLM's and FlauBERT's
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tagging",
    "ForImageClassification": "images",
    "ForImageClassificationWithTeacher": "images",  # DeiT's and LeViT's
    "Model": "embedding",
}
TASK_OF_PROBLEM = {"regression": "regression", INDEPENDENT: "multilabel"}  # transformers' names


class ClassIndices:
    """The index of each class among the logits, by its name, in any case where that means one class, or by its number.

    Args:
        names: in the order of the logits.
        numbered: whether a teacher or a schema fixes the order, so that a number means a class.
    """

    def __init__(self, names: Sequence[str], numbered: bool):
        self.names, self.numbered = list(names), numbered
        self.indices = {name: i for i, name in enumerate(names)}
        spellings = Counter(name.lower() for name in names)
        self.in_any_case = {name.lower(): i for i, name in enumerate(names) if spellings[name.lower()] == 1}
        numeric = [NUMERIC_NAME.fullmatch(name) for name in names]
        integers = [match[1] if match and not match[2] else None for match in numeric]
        counts = Counter(integers)
        # 2 for the class 2.0
        self.by_integer = {name: i for i, name in enumerate(integers) if name and counts[name] == 1}
        self.numbers: dict[str, int] = {}
        if numbered and not any(numeric):
            self.numbers = {str(i): i for i in self.indices.values()}
        if numbered and len(names) == 2:
            self.numbers |= {"False": 0, "True": 1}

    def __getitem__(self, name: str) -> int | None:
        index = self._by_name(name)
        return self.numbers.get(name) if index is None else index

    def _by_name(self, name: str) -> int | None:
        return self.indices.get(name, self.in_any_case.get(name.lower(), self.by_integer.get(name)))

    def of(self, name: str, row: int, source: str) -> int:
        """The index of the class that a row names; :class:`UserError` for an unknown name or number."""
        index = self[name]
        if index is None:
            raise UserError(
                f"row {row} of '{source}' has the label {name!r}: expected one of the teacher or the training data: "
                f"{first_few(self.names)}"
            )
        return index

    def notes(self, names: Iterable[str]) -> list[str]:
        """A note that says which of the names are numbers, and of which classes; none where no name is."""
        numbers = sorted(name for name in {*names} & self.numbers.keys() if self._by_name(name) is None)
        meanings = [f"{number} is {self.names[self.numbers[number]]}" for number in numbers]
        return [f"numbers by the order of the classes: {first_few(meanings)}"] if meanings else []


def class_names(data: Iterable[str], teacher: Sequence[str]) -> list[str]:
    """The classes in the order of the logits.

    Args:
        data: the classes that the data names.
        teacher: those of a teacher that has the head; its order counts, and numbers in the data are indices in it.

    Raises:
        UserError: fewer than two classes, or others than the teacher's.
    """
    names = {*data}
    if teacher:
        indices = ClassIndices(teacher, numbered=True)
        if all(indices[name] is not None for name in names):
            return list(teacher)
        unnamed = all(map(UNNAMED.fullmatch, teacher))
        hint = "; or write the names into id2label of the teacher's config.json, in its order" if unnamed else ""
        raise UserError(
            f"the teacher tells {first_few(teacher)} apart, the data names {first_few(sorted(names))}: expected the "
            "same names, or their numbers from 0; or a teacher without such a head, which is then fine-tuned" + hint
        )
    if len(names) < 2:
        raise UserError(
            f"the training data names {len(names)} classes{f' ({min(names)})' if names else ''}: expected two or more; "
            "see --label_column, or take a teacher that has the head"
        )
    return sorted(names, key=lambda name: (0, float(name), name) if NUMERIC_NAME.fullmatch(name) else (1, 0, name))


def label_fields(names: Sequence[str], problem_type: str | None) -> dict[str, Any]:
    """The config fields that name a head's classes and choose its loss; none without classes."""
    if not names:
        return {}
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return {**fields, "problem_type": problem_type} if problem_type else fields


def saved_config(source: Any) -> Any:
    """The config of a folder or Hub id, running no code of it; None without one, an error once it is loaded."""
    try:
        config = AutoConfig.from_pretrained(folder_of(source), trust_remote_code=False)
    except CONFIG_ERRORS:
        return None
    return with_library_fields(config, source)


def with_library_fields(config: Any, source: Any) -> Any:
    """The config of a folder or Hub id, with what sentence-transformers keeps in files of its own.

    A cross-encoder gets the function of its scores. A sentence encoder whose config names the head that it was
    pre-trained with, as all-mpnet-base-v2's does, becomes an encoder alone.

    Raises:
        UserError: such a file is not JSON, or the config's architectures are not a list.
    """
    if not isinstance(config.architectures, list | None):
        raise UserError(
            f"{source}: its config.json has architectures {config.architectures!r}: expected a list of names"
        )
    if config.num_labels == 1 and not is_reranker(config):
        fields = cached_json(folder_of(source), LIBRARY_FILE) or {}
        if fields.get("model_type") == "CrossEncoder":
            config.sentence_transformers = {"activation_fn": fields.get("activation_fn")}
            warn_of_prompt(fields, source)
    if (config.architectures or [""])[0].endswith(PRETRAINED):
        kinds = [module["type"] for module in cached_json(folder_of(source), "modules.json") or []]
        encoder = AutoModel._model_mapping.get(type(config), None)
        if isinstance(encoder, type) and any(kind.endswith(".Pooling") for kind in kinds):
            config.architectures = [encoder.__name__]
    return config


def warn_of_prompt(fields: Mapping[str, Any], source: Any) -> None:
    """Warn where sentence-transformers would put a prompt before the texts of a model."""
    if prompt := (fields.get("prompts") or {}).get(fields.get("default_prompt_name")):
        warn_once(
            f"[texts] {source}: sentence-transformers puts {prompt!r} before its texts, which nothing here does; write "
            "it into the data"
        )


def known_classes(teacher: Any, model_class: Any) -> list[str]:
    """The classes of a model, by folder or Hub id, in its order; none where it lacks the head of ``model_class``."""
    config = saved_config(teacher) if isinstance(teacher, str) else None
    return classes_of(config) if config and has_head(config, model_class) else []


def is_reranker(config: Any) -> bool:
    """Whether a config is that of a cross-encoder with one score, as `itrd` and sentence-transformers save it.

    It is read by :func:`saved_config` or :func:`itrd_nlp.models.loading.load_config`.
    """
    fields = getattr(config, "sentence_transformers", None)
    return config.num_labels == 1 and isinstance(fields, Mapping) and "activation_fn" in fields


def temperature_of(config: Any) -> float | None:
    """The temperature in a config, by which logits are divided before they become probabilities; None without one.

    Raises:
        UserError: no number above 0.
    """
    value = getattr(config, TEMPERATURE, None)
    if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
        raise UserError(
            f"config.json has {TEMPERATURE} {value!r}: expected a number above 0; `itrd evaluate --calibrate` fits one"
        )
    return value


def classes_of(config: Any) -> list[str]:
    """The classes that a config names, in the order of the logits."""
    return [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names; one that stood before gets its index, as ImageNet has two cranes.

    Example:
        >>> distinct(["crane", "cat", "crane"])
        ['crane', 'cat', 'crane (2)']
    """
    first = {name: i for i, name in reversed([*enumerate(names)])}
    return [name if first[name] == i else f"{name} ({i})" for i, name in enumerate(names)]


def first_out_of_order(own: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The first class that stands elsewhere, where two heads have the same classes in another order; else None."""
    if sorted(own) != sorted(wanted):
        return None
    return next((i for i, names in enumerate(zip(own, wanted, strict=True)) if names[0] != names[1]), None)


def has_head(config: Any, model_class: Any) -> bool:
    """Whether a checkpoint's config names a class with the head of ``model_class``, an AutoModelFor...

    The classes that ``model_class`` loads count too: XLNet's for question answering is called ...Simple, and DeiT has
    one that was trained with a teacher.
    """
    names, ending = config.architectures or (), model_class.__name__.removeprefix("AutoModel")
    loaded = getattr(model_class, "_model_mapping", {}).get(type(config), None)
    kinds = {getattr(kind, "__name__", None) for kind in (loaded if isinstance(loaded, tuple) else (loaded,))}
    return any(name.endswith(ending) or name in kinds for name in names)


def first_few(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def ending_of(architecture: str) -> str:
    """The part of an architecture's name that says which head it has; "" for an unknown one."""
    return next((ending for ending in TASK_OF_HEAD if architecture.endswith(ending)), "")


def task_of(config: Any, architecture: str | None = None) -> str | None:
    """The task of a model by its config, e.g. ``classification``; None for a head of no known task.

    Args:
        architecture: the name of its class, where the config may not have it.
    """
    if config.model_type == "timm_wrapper":
        return "images"
    head = architecture or (config.architectures or [""])[0]
    task = TASK_OF_HEAD.get(ending_of(head))
    if task == "embedding" and (head.endswith(("HeadModel", "HeadsModel")) or hasattr(config, "vision_config")):
        return None  # GPT2LMHeadModel; CLIPModel, which reads images, too
    if task == "classification" and is_reranker(config):
        return "reranking"
    if task == "classification":
        return TASK_OF_PROBLEM.get(config.problem_type, "regression" if config.num_labels == 1 else task)
    return task
