"""What ``itrd recipes`` prints: the groups of packaged recipes, and the recipes of a group, one line each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from itrd_nlp.experiments.recipes import packaged, read_about, recipes


def group_lines() -> list[str]:
    """A line for each folder of recipes: its name, how many it holds, one of them to try, and what they are."""
    counts = Counter(name.partition("/")[0] for name in recipes())
    return aligned(
        [[name, f"{counts[name]:>3}", text["example"], text["about"]] for name, text in read_about().items()]
    )


def recipe_lines(names: Sequence[str]) -> list[str]:
    """A line for each recipe: its name, the method's label, its losses and what the student is made of."""
    rows = []
    for name in names:
        values = packaged(name)
        losses = " + ".join(values["losses"]) or "no distillation"
        rows.append([name, values.get("label", ""), losses, student_words(values["student"])])
    return aligned(rows)


def student_words(student: str | Mapping[str, Any] | None) -> str:
    """Say what a recipe's student is made of.

    Example:
        >>> student_words({"from": "teacher", "layers": "first:3"})
        'first 3 layers of the teacher'
    """
    if student is None:
        return "your --student"
    if isinstance(student, str):
        return student
    if "from" not in student:
        return str(student.get("timm") or f"a new {student['model_type']}")
    source = "the teacher" if student["from"] == "teacher" else student["from"]
    width = f", {student['hidden_size']} wide" if "hidden_size" in student else ""
    layers = student["layers"]
    if not isinstance(layers, str):
        return f"layers {', '.join(map(str, layers))} of {source}{width}"
    where, _, count = layers.partition(":")
    chosen = f"{count} evenly spaced" if where == "even" else f"{where} {count}"
    return f"{chosen} layers of {source}{width}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns as wide as their longest cell, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
