"""Whose classes count, and in which order: a trained classifier's, or those of the images."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Value

from itrd_nlp.models.classes import class_names as sorted_names
from itrd_nlp.models.classes import classes_of, listed, saved_config
from itrd_nlp.utils.errors import UserError

MOST = 1_000_000  # the highest label of which it is thought that it is one


class Head(NamedTuple):
    """What a trained classifier says of its classes."""

    source: str  # for messages
    names: list[str]  # in the order of its outputs; [] where it does not name them
    outputs: int | None = None  # None: unknown before its weights are loaded


def head_of(source: Any) -> Head | None:
    """The head that an image classifier comes with, by what a recipe says of it; None where it will get a new one.

    Args:
        source: see :func:`itrd_nlp.vision.models.load_image_model`.
    """
    if isinstance(source, dict):
        if "checkpoint" not in source:
            return None
        names = source.get("class_names") or []
        return Head(str(source["checkpoint"]), [str(name) for name in names], len(names) or None)
    config = saved_config(source)
    if config is None:  # a name of timm, or nothing
        return None
    trained = any("ForImageClassification" in name for name in config.architectures or ())
    if not (trained or config.model_type == "timm_wrapper"):
        return None
    return Head(source, named_classes(config), config.num_labels)


def named_classes(config: Any) -> list[str]:
    """The classes that a config names, in the order of the outputs; [] for transformers' own LABEL_0, LABEL_1, ..."""
    names = classes_of(config)
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def same_name(name: str) -> str:
    """What a class is told by: not its case, nor how its accents are encoded or its words are joined.

    Example:
        >>> same_name("Guinea_Pig"), same_name("-1"), same_name("C-")
        ('guinea pig', '-1', 'c-')
    """
    joined = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", unicodedata.normalize("NFC", name).strip())
    return joined.casefold()


def alike(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the same classes stand in the same order."""
    return [*map(same_name, some)] == [*map(same_name, others)]


def settle_classes(
    train: Dataset | None, validation: Dataset | None, head: Head | None = None, classes: int | None = None
) -> tuple[list[str], list[Dataset | None]]:
    """The classes in the order of a classifier's outputs, and the splits with their places there as labels.

    The order is that of a trained teacher that names the same classes; else the one that the training data declares or
    numbers; else that of the sorted names. Names may differ in case.

    Args:
        train: as :func:`itrd_nlp.tasks.image_classification.files.load_images` returns it, or None.
        validation: the same; where it is alone, it may lack classes of the teacher.
        head: of the teacher; None where it is to be trained.
        classes: how many there must be where they have numbers alone; None: as many as are seen.

    Raises:
        UserError: other classes than the teacher's, or in evaluation than in training; numbers whose names, or names
            whose numbers, are unknown; fewer than two classes.
    """
    splits = [split for split in (train, validation) if split is not None]
    names = _names(splits, classes)
    numbered = splits[0].features["label"] != Value("string") or _are_numbers(names)
    if head is not None and head.names:
        if _fits(splits[0], names, head, alone=train is None):
            names, numbered = head.names, True
    elif head is not None and not numbered and head.outputs in (None, len(names)):
        raise UserError(
            f"{head.source} does not name its classes, and the names of {_where(splits[0])} have no numbers "
            f"({listed(names)}): expected id2label in its config.json, class_names beside its checkpoint, or 0, 1, ... "
            "as names, in the order of its outputs"
        )
    if len(names) < 2:
        raise UserError(f"{_where(splits[0])} has the class {names[0]!r} alone: expected two or more")
    return names, [None if split is None else _placed(split, names, numbered) for split in (train, validation)]


def _fits(first: Dataset, names: list[str], head: Head, alone: bool) -> bool:
    """Whether labels are classes of a head; False where it is one for something else, to be replaced and trained.

    Raises:
        UserError: they are not, and nothing shows that the head is meant to be replaced.
    """
    known, count = _known(head.names), len(head.names)
    used = _used(first)
    if all(name in head.names or same_name(name) in known for name in used) or alike(names, head.names):
        return True
    if _are_numbers(names) and (len(names) == count or (alone and len(names) < count)):
        return True
    if alone or len(names) == count:
        raise UserError(
            f"{head.source} has the classes {listed(head.names)}, {_where(first)} has {listed(names)}: expected the "
            "same names, or their numbers from 0; or a model without such a head, which is then fine-tuned"
        )
    return False


def _names(splits: Sequence[Dataset], classes: int | None) -> list[str]:
    """The classes of the first split in its own order; of numbers, those of all splits."""
    kind = splits[0].features["label"]
    if isinstance(kind, ClassLabel):
        return list(kind.names)
    if kind == Value("string"):
        found = {*splits[0]["label"][:]}
        return sorted_names(found, []) if len(found) > 1 else sorted(found)
    if kind != Value("int64"):
        raise UserError(f"labels are of type {kind}: expected classes or whole numbers")
    numbers = [split for split in splits if split.features["label"] == kind]
    seen = max(max(split["label"][:]) for split in numbers)
    return [str(i) for i in range(classes or 1 + max(0, min(seen, MOST)))]


def _used(split: Dataset) -> list[str]:
    """The classes that a split's rows have."""
    kind, labels = split.features["label"], sorted({*split["label"][:]})
    return [kind.names[i] for i in labels] if isinstance(kind, ClassLabel) else [str(label) for label in labels]


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether names are the numbers from 0."""
    return {*names} <= {str(i) for i in range(len(names))}


def _known(names: Sequence[str]) -> dict[str, int]:
    """The place of each class by what it is told by; what two classes share tells none."""
    counts = Counter(map(same_name, names))
    return {key: i for i, name in enumerate(names) if counts[key := same_name(name)] == 1}


def _placed(split: Dataset, names: list[str], numbered: bool) -> Dataset:
    """The split with labels that are places in ``names``; ``numbered``: whether numbers are such places."""
    kind, labels = split.features["label"], split["label"][:]
    exact = {name: i for i, name in enumerate(names)} if len({*names}) == len(names) else {}
    known, numbers = _known(names), {}
    if numbered and not any(name.isdecimal() for name in names):
        numbers = {str(i): i for i in range(len(names))}
    same = isinstance(kind, ClassLabel) and alike(kind.names, names)
    places: dict[Any, int] = {}
    for label in {*labels}:
        name = kind.names[label] if isinstance(kind, ClassLabel) else str(label)
        place = label if same else exact.get(name, known.get(same_name(name), numbers.get(name)))
        if place is None:
            raise UserError(
                f"{_where(split)}, row {labels.index(label)}, has the label {name!r}: expected "
                f"{'one of the ' if numbered else 'names, '}{len(names)} classes {listed(names)}"
            )
        places[label] = place
    placed = split.remove_columns("label").add_column("label", np.array([places[label] for label in labels]))
    placed.info.description = split.info.description
    return placed


def _where(split: Dataset) -> str:
    """Where a split comes from, for messages."""
    return split.info.description or f"the {split.split or 'data'}"
