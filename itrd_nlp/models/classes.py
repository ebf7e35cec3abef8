"""The classes of a head: whose names and order count, and how a model's config holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import AutoConfig

from itrd_nlp.models.onnx_model import folder_of
from itrd_nlp.utils.errors import UserError


class Places:
    """The place of each class among the logits, by how people write it: in any case, or as its number.

    Args:
        names: in the order of the logits.
        numbered: whether something says which class a number is, such as a teacher or a schema.
    """

    def __init__(self, names: Sequence[str], numbered: bool):
        self.names, self.numbered = list(names), numbered
        exact = {name: i for i, name in enumerate(names)}
        self.places = {name.lower(): i for name, i in exact.items()} | exact
        self.numbers: dict[str, int] = {}
        if numbered and not any(name.isdecimal() for name in names):
            self.numbers = {str(i): i for i in exact.values()}
        if numbered and len(names) == 2:
            self.numbers |= {"False": 0, "True": 1}
        self.used: set[str] = set()  # numbers that were asked for

    def __getitem__(self, name: str) -> int | None:
        found = self.places.get(name, self.places.get(name.lower()))
        if found is None and name in self.numbers:
            self.used.add(name)
            return self.numbers[name]
        return found

    def of(self, name: str, row: int, source: str) -> int:
        """The place of a class that a row names; :class:`UserError` for a name, or a number, of none."""
        found = self[name]
        if found is None:
            raise UserError(
                f"row {row} of '{source}' has the label {name!r}: expected one of the teacher or the training data: "
                f"{listed(self.names)}"
            )
        return found

    def notes(self) -> list[str]:
        """Which numbers were taken for which classes since the last call, in words."""
        taken = [f"{number} is {self.names[self.numbers[number]]}" for number in sorted(self.used)]
        self.used = set()
        return [f"numbers by the order of the classes: {listed(taken)}"] if taken else []


def class_names(found: Iterable[str], known: Sequence[str]) -> list[str]:
    """The classes in the order of the logits.

    Args:
        found: what the data names.
        known: those of a teacher that has the head; its order counts, and numbers in the data are places in it.

    Raises:
        UserError: fewer than two classes, or others than the teacher's.
    """
    given = {*found}
    if known:
        places = Places(known, numbered=True)
        if all(places[name] is not None for name in given):
            return list(known)
        raise UserError(
            f"the teacher tells {listed(known)} apart, the data names {listed(sorted(given))}: expected the same "
            "names, or their numbers from 0; or a teacher without such a head, which is then fine-tuned"
        )
    if len(given) < 2:
        raise UserError(
            f"the training data names {len(given)} classes{f' ({min(given)})' if given else ''}: expected two or more; "
            "see --label_column, or take a teacher that has the head"
        )
    return sorted(given, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def label_fields(names: Sequence[str], problem_type: str | None) -> dict[str, Any]:
    """The config fields that name a head's classes and say what its loss is; none without classes."""
    if not names:
        return {}
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return {**fields, "problem_type": problem_type} if problem_type else fields


def saved_config(source: Any) -> Any:
    """The config of a folder or Hub id, without running code of it; None where it has none, which loading it tells."""
    try:
        return AutoConfig.from_pretrained(folder_of(source), trust_remote_code=False)
    except (OSError, ValueError):
        return None


def known_classes(teacher: Any, model_class: Any) -> list[str]:
    """The classes of a model, by folder or Hub id, that has the head of ``model_class``, in its order; else none."""
    config = saved_config(teacher) if isinstance(teacher, str) else None
    return classes_of(config) if config and has_head(config, model_class) else []


def classes_of(config: Any) -> list[str]:
    """The classes that a config names, in the order of the logits."""
    return [config.id2label[i] for i in range(config.num_labels)]


def has_head(config: Any, model_class: Any) -> bool:
    """Whether a checkpoint's config says that it was saved with the head of ``model_class``, an AutoModelFor...

    The class that ``model_class`` loads counts, too: XLNet's for question answering is called ...Simple.
    """
    names, ending = config.architectures or (), model_class.__name__.removeprefix("AutoModel")
    loaded = getattr(model_class, "_model_mapping", {}).get(type(config), None)
    return any(name.endswith(ending) or name == getattr(loaded, "__name__", None) for name in names)


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
