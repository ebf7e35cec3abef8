"""Which classes a task has, and in which order: a trained classifier's, or those of the images."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Value
from timm.data import ImageNetInfo

from itrd_nlp.models.classes import class_names, classes_of, first_few, saved_config
from itrd_nlp.utils.errors import UserError

HIGHEST = 1_000_000  # higher numbers are not classes


class Head(NamedTuple):
    """The classes of a trained classifier."""

    source: str  # for messages
    names: list[str]  # in the order of its outputs; [] if it does not name them
    outputs: int | None = None  # None: unknown before its weights are loaded


def head_of(source: Any) -> Head | None:
    """Read the classes of a trained image classifier; None if the model will get a new head.

    Args:
        source: see :func:`itrd_nlp.vision.models.load_image_model`.
    """
    if isinstance(source, dict):
        if "checkpoint" not in source:
            return None
        names = [str(name) for name in source.get("class_names") or []]
        return Head(str(source["checkpoint"]), names, len(names) or None)
    config = saved_config(source)
    if config is None:  # a name of timm, or nothing
        return None
    trained = any("ForImageClassification" in name for name in config.architectures or ())
    if not (trained or config.model_type == "timm_wrapper"):
        return None
    return Head(source, named_classes(config), config.num_labels)


def named_classes(config: Any) -> list[str]:
    """The classes that a config names, in the order of the outputs; [] for the default LABEL_0, LABEL_1, ..."""
    names = classes_of(config)
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def same_name(name: str) -> str:
    """Normalise a class's name: case, encoding of accents, and what joins its words do not count.

    Example:
        >>> same_name("Guinea_Pig"), same_name("-1"), same_name("C-")
        ('guinea pig', '-1', 'c-')
    """
    joined = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", unicodedata.normalize("NFC", name).strip())
    return joined.casefold()


def alike(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both hold the same classes in the same order.

    Where one has two classes of one name, as ImageNet's heads have two cranes, the other may add to that name.
    """
    if len(some) != len(others):
        return False
    left, right = [[*map(same_name, names)] for names in (some, others)]
    lefts, rights = Counter(left), Counter(right)
    pairs = zip(left, right, strict=True)
    return all(a == b or (lefts[a] > 1 and a in b) or (rights[b] > 1 and b in a) for a, b in pairs)


def settle_classes(
    train: Dataset | None, validation: Dataset | None, head: Head | None = None, classes: int | None = None
) -> tuple[list[str], list[Dataset | None]]:
    """Decide on the classes and their order, and replace the splits' labels by indices of classes.

    The order is that of a trained teacher with the same classes; else the one that the training data declares or
    numbers; else that of the sorted names.

    Args:
        train: as :func:`itrd_nlp.tasks.image_classification.files.load_images` returns it, or None.
        validation: the same; without training data, it may lack classes of the teacher.
        head: of the teacher; None if it is to be trained.
        classes: how many there are if the labels are numbers; None takes the highest number.

    Raises:
        UserError: classes that differ from the teacher's, or between training and evaluation; numbers whose names, or
            names whose numbers, are unknown; fewer than two classes.
    """
    splits = [split for split in (train, validation) if split is not None]
    first = splits[0]
    names = _declared_classes(splits, classes)
    outputs = (head and head.outputs) or 0
    if train is None and all(name.isdecimal() and int(name) < outputs for name in names):  # which may lack some
        names = [str(i) for i in range(outputs)]
    numbered = first.features["label"] != Value("string") or _are_numbers(names)
    if head is not None and head.names:
        if _fits(first, names, head, alone=train is None):
            names, numbered = head.names, True
    elif head is not None and not numbered and head.outputs in (None, len(names)):
        raise UserError(
            f"{head.source} does not name its classes, and the names of {_source(first)} have no numbers "
            f"({first_few(names)}): expected id2label in its config.json, class_names beside its checkpoint, or 0, 1, "
            "... as names, in the order of its outputs"
        )
    if len(names) < 2:
        raise UserError(f"{_source(first)} has the class {names[0]!r} alone: expected two or more")
    return names, [None if split is None else _indexed(split, names, numbered) for split in (train, validation)]


def _fits(first: Dataset, names: list[str], head: Head, alone: bool) -> bool:
    """Whether the labels are classes of a head; False if the head is for other classes, to be replaced and trained.

    Raises:
        UserError: they are not, and nothing shows that the head is meant to be replaced.
    """
    index_of, count = _finder(head.names, numbered=False), len(head.names)
    if all(index_of(name) is not None for name in _labels(first).values()) or alike(names, head.names):
        return True
    if _are_numbers(names) and (len(names) == count or (alone and len(names) < count)):
        return True
    if alone or len(names) == count:
        raise UserError(
            f"{head.source} has the classes {first_few(head.names)}, {_source(first)} has {first_few(names)}: expected "
            "the same names, or their numbers from 0; or a model without such a head, which is then fine-tuned"
        )
    return False


def _declared_classes(splits: Sequence[Dataset], classes: int | None) -> list[str]:
    """The classes of the first split in its own order; if they are numbers, those of all splits."""
    kind = splits[0].features["label"]
    if isinstance(kind, ClassLabel):
        return list(kind.names)
    if kind == Value("string"):
        names = splits[0].unique("label")
        return class_names(names, []) if len(names) > 1 else names
    highest = max(max(split.unique("label")) for split in splits if split.features["label"] == kind)
    return [str(i) for i in range(classes or 1 + max(0, min(highest, HIGHEST)))]


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether names are the numbers from 0."""
    return {*names} <= {str(i) for i in range(len(names))}


def _labels(split: Dataset) -> dict[Any, str]:
    """Each label that occurs, and its class's name."""
    kind = split.features["label"]
    return {label: kind.names[label] if isinstance(kind, ClassLabel) else str(label) for label in split.unique("label")}


def _finder(names: Sequence[str], numbered: bool) -> Callable[[str], int | None]:
    """A function from a name to the index of its class: the same name, else a similar one; None if none or several fit.

    Args:
        names: of the classes.
        numbered: whether a number may stand for a class.
    """
    exact, similar = {**_synsets(names), **_unique(names)}, _unique([same_name(name) for name in names])
    numbers: dict[str, int] = {}
    if numbered and not any(name.isdecimal() for name in names):
        numbers = {str(i): i for i in range(len(names))}
    return lambda name: exact.get(name, similar.get(same_name(name), numbers.get(name)))


def _synsets(names: Sequence[str]) -> dict[str, int]:
    """Synset, as ImageNet's folders are called, -> index of its class, where a head has the classes of ImageNet-1k."""
    info = ImageNetInfo()
    if len(names) != info.num_classes() or not alike(names, [*info.label_descriptions()]):
        return {}
    return {synset: i for i, synset in enumerate(info.label_names())}


def _unique(names: Sequence[str]) -> dict[str, int]:
    """The index of each name that occurs once."""
    counts = Counter(names)
    return {name: i for i, name in enumerate(names) if counts[name] == 1}


def _indexed(split: Dataset, names: list[str], numbered: bool) -> Dataset:
    """Replace labels by indices in ``names``; ``numbered``: whether a number may stand for a class."""
    kind, index_of, indices = split.features["label"], _finder(names, numbered), {}
    same = isinstance(kind, ClassLabel) and alike(kind.names, names)  # also if two classes share a name
    for label, name in _labels(split).items():
        indices[label] = label if same else index_of(name)
        if indices[label] is None:
            raise UserError(
                f"{_source(split)}, row {split['label'][:].index(label)}, has the label {name!r}: expected "
                f"{'one of the ' if numbered else 'names, '}{len(names)} classes {first_few(names)}"
            )
    column = np.array([indices[label] for label in split["label"][:]])
    replaced = split.remove_columns("label").add_column("label", column)
    replaced.info.description = split.info.description
    return replaced


def _source(split: Dataset) -> str:
    """Where a split comes from, for messages."""
    return split.info.description or f"the {split.split or 'data'}"
