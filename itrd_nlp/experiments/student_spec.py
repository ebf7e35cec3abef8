"""What the option ``student`` of a run says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEW = ("model_type", "timm")  # fields that name an architecture, whose weights are new


@dataclass(frozen=True)
class StudentSpec:
    """Where a student comes from, and what it keeps of it.

    Attributes:
        source: "teacher", or the folder or Hub id that it starts from; None for a new model.
        as_is: it is the source itself, with all of its layers.
        layers: those of the source that it keeps otherwise, see `pick_layers`.
        tokenizer: folder or Hub id of a tokenizer that replaces the source's.
        vocabulary: how many pieces of the tokenizer it keeps; None for all.
        fields: what its config changes, or that of a new model.
    """

    source: str | None = "teacher"
    as_is: bool = False
    layers: Any = "even:3"
    tokenizer: str | None = None
    vocabulary: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, option: str | Mapping[str, Any]) -> "StudentSpec":
        """A folder or Hub id, or a mapping of ``from``, ``layers``, ``tokenizer``, ``vocabulary`` and config fields."""
        if isinstance(option, str):
            return cls(option, as_is=True)
        fields = dict(option)
        own = {name: fields.pop(name) for name in ("tokenizer", "vocabulary") if name in fields}
        if any(name in fields for name in NEW):
            return cls(None, fields=fields, **own)
        return cls(fields.pop("from", cls.source), layers=fields.pop("layers", cls.layers), fields=fields, **own)

    @property
    def from_teacher(self) -> bool:
        """Whether it starts from the teacher of its run; a student that is given by a name alone may be called so."""
        return self.source == "teacher" and not self.as_is

    @property
    def folder(self) -> str | None:
        """The folder or Hub id that it starts from, if it starts from one."""
        return None if self.from_teacher else self.source

    def __str__(self) -> str:
        """What a list of recipes says of it, e.g. "first 3 layers of the teacher"."""
        if self.source is None:
            return str(self.fields.get("timm") or f"a new {self.fields['model_type']}")
        if self.as_is:
            return self.source
        source = "the teacher" if self.from_teacher else self.source
        width = f", {self.fields['hidden_size']} wide" if "hidden_size" in self.fields else ""
        if not isinstance(self.layers, str):
            return f"layers {', '.join(map(str, self.layers))} of {source}{width}"
        where, _, count = self.layers.partition(":")
        chosen = f"{count} evenly spaced" if where == "even" else f"{where} {count}"
        return f"{chosen} layers of {source}{width}"
