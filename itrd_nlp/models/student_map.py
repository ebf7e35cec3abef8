"""Where each part of a student came from."""

import dataclasses

from transformers import PreTrainedModel

from itrd_nlp.models.width import layer_of


@dataclasses.dataclass(frozen=True)
class StudentMap:
    """Where every part of a student came from."""

    student: str  # its class
    layers: list[int]  # zero-based indices of the source's layers that it keeps
    source_layers: int  # number of layers of the source
    parts: dict[str, str]  # part of the student -> its origin; layers are counted from one here, as people do
    source_parameters: int  # number of parameters of the source
    parameters: int  # and of the student
    units: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # kind -> how many of how many it keeps
    comparison: str = ""  # of the layers with others, where they were chosen by measurement
    vocabulary: tuple[int, int] | None = None  # pieces of the source and of the student, where they were cut


def describe_map(student_map: StudentMap) -> str:
    """The map as lines: one for each part of the student, and the number of parameters before and after."""
    lines = [f"{student_map.student}: {len(student_map.layers)} of {student_map.source_layers} layers"]
    if student_map.comparison:
        lines.append(f"  {student_map.comparison}")
    lines += [f"  {kind}: the {count} most important of {total}" for kind, (count, total) in student_map.units.items()]
    lines += [f"  {part} <- {origin}" for part, origin in student_map.parts.items()]
    if student_map.vocabulary is not None:
        lines.append("  vocabulary: {:,} -> {:,} pieces".format(*student_map.vocabulary))
    before, after = student_map.source_parameters, student_map.parameters
    return "\n".join([*lines, f"  parameters: {before:,} -> {after:,} ({100 * after / before:.0f}%)"])


def part_origins(
    student: PreTrainedModel, prefix: str, layers: list[int], copied: set[str], dropped: list[str]
) -> dict[str, str]:
    """Part of the student -> its origin, for each layer and each module outside the layers.

    Args:
        prefix: of the layers' names.
        layers: of the source, one for each layer of the student.
        copied: names of the student's weights that are the source's.
        dropped: names of the source's weights for which the student has no place.
    """
    weights: dict[str, list[str]] = {}
    for name in [*student.state_dict(), *dropped]:
        weights.setdefault(_part(name, prefix), []).append(name)
    origins = {}
    for part, names in weights.items():
        label, origin = part.removeprefix(f"{student.base_model_prefix}."), "copied"
        if (index := layer_of(part, prefix)) is not None:
            label, origin = f"student layer {index + 1}", f"teacher layer {layers[index] + 1} (index {layers[index]})"
        gone = [name for name in names if name in dropped]
        own = [name for name in names if name not in gone]
        new = [name for name in own if name not in copied]
        notes = [] if copied.isdisjoint(names) else [origin]
        notes += [_note("new", new, own, part)] if new else []
        notes += [_note("dropped", gone, names, part)] if gone else []
        origins[label] = "; ".join(notes)
    return origins


def _note(word: str, names: list[str], of: list[str], part: str) -> str:
    """What happened to some weights of a part: their names where they are few, else how many they are."""
    if len(names) == len(of):
        return word
    if len(names) > 2:
        return f"{word}: {len(names)} of {len(of)} weights"
    return f"{word}: {', '.join(name.removeprefix(f'{part}.') for name in names)}"


def _part(name: str, prefix: str) -> str:
    """The module of a line of the map: a layer, or the outermost module that does not hold the layers."""
    pieces, depth = name.split("."), 1
    while f"{prefix}.".startswith(".".join(pieces[:depth]) + "."):
        depth += 1
    return ".".join(pieces[:depth])
