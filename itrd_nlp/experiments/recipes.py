"""Recipes: YAML files by path or packaged name, each on top of its base; and what ``itrd recipes`` prints of them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from itrd_nlp.experiments.student_spec import StudentSpec
from itrd_nlp.experiments.suggestions import suggest
from itrd_nlp.utils.errors import UserError, nearest, one_line, reading

YAML_TAG = "tag:yaml.org,2002:"
# keys of names: 2024 is a folder, and "no" a strategy
TEXT_KEYS = re.compile(r"from|tokenizer|label|(text|text_pair|label)_column|(eval|save|logging)_strategy")


class Loader(yaml.SafeLoader):
    """YAML as everyone expects it: 3e-5 is a number, a name is text, and a mapping has a key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key, where YAML 1.1 silently takes the last one."""
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if isinstance(value, yaml.ScalarNode) and TEXT_KEYS.fullmatch(key.value):
                    value.tag = re.sub(f"^{YAML_TAG}(bool|int|float|timestamp)$", f"{YAML_TAG}str", value.tag)
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


REPORTED = "_reported.yaml"  # in a folder: the published scores of its table
ABOUT = "_about.yaml"  # beside the folders: a description of each
TABLE = "_table.yaml"  # in a folder: its recipes, a pair of teacher and student times a method


def recipes() -> list[str]:
    """Names of the packaged recipes, e.g. ``squad/t6-itrd``; a file whose name starts with ``_`` is not one."""
    files = [path.relative_to(_root()) for path in _root().rglob("*.yaml")]
    names = [path.with_suffix("").as_posix() for path in files if path.name[0] != "_"]
    for path in _root().rglob(TABLE):
        table = _read_table(path)
        names += [f"{path.parent.name}/{pair}-{method}" for pair in table["pairs"] for method in table["methods"]]
    return sorted(names)


def from_table(path: Path, name: str) -> dict[str, Any]:
    """The recipe ``<pair>-<method>`` of a table.

    A table has the keys ``common``, which all its recipes hold, ``pairs`` and ``methods``; a method's values win over
    its pair's, and a pair's over the common ones. In a method, ``$alpha`` stands for ``alpha`` of the pair's
    ``values``.
    """
    table = deepcopy(_read_table(path))
    pair, method = next((p, m) for p in table["pairs"] for m in table["methods"] if f"{p}-{m}" == name)
    of_pair = table["pairs"][pair]
    values = of_pair.pop("values", {})
    return {**table["common"], **of_pair, **_filled(table["methods"][method], values)}


def packaged(name: str) -> dict[str, Any]:
    """Values of a packaged recipe, even where the working folder has a file of its name."""
    path = _root() / f"{name}.yaml"
    return read_recipe(str(path)) if path.is_file() else from_table(path.parent / TABLE, path.stem)


def read_about() -> dict[str, dict[str, str]]:
    """A description of each folder of packaged recipes (``about``), and a recipe to try first (``example``)."""
    return _read(_root() / ABOUT)


def read_reported(folder: str) -> tuple[list[str], dict[str, dict[str, float]], tuple[str, str]]:
    """Published scores of a folder's table: its pairs, the scores of each row by pair, and the rows of ITRD and KD.

    Raises:
        UserError: the folder has no published scores.
    """
    path = _root() / folder / REPORTED
    if not path.is_file():
        known = sorted(p.parent.name for p in _root().rglob(REPORTED))
        raise UserError(f"recipes of {folder!r} have no published table of pairs: expected those of {', '.join(known)}")
    table = _read(path)
    scores = {}
    for row, values in table["rows"].items():
        by_pair = zip(table["pairs"], values, strict=True)
        scores[row] = {pair: score for pair, score in by_pair if score is not None}
    return table["pairs"], scores, (table["itrd"], table["kd"])


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    return values[node[1:]] if isinstance(node, str) and node.startswith("$") else node


@cache  # the package's own files: every recipe's name needs them
def _read_table(path: Path) -> dict[str, Any]:
    return _read(path)


def _root() -> Path:
    return Path(str(resources.files("itrd_nlp") / "recipes"))


def _read(path: Path) -> dict[str, Any]:
    with reading(path, "a recipe in YAML"):
        text = path.read_text(encoding="utf-8-sig")
    try:
        values = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        reason = one_line(error, None)
        tab = "; indent it with blanks: there is a tab" if re.search(r"^ *\t", text, re.MULTILINE) else ""
        raise UserError(f"{path}: not readable as YAML ({reason}){tab}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def read_recipe(name: str, known: Collection[str] | None = None, above: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, or a packaged recipe by its name.

    Its key ``base`` names another recipe, by its packaged name or its path from this file, whose values hold where the
    recipe has none of its own. A recipe with losses of its own does not take over the base's label.

    Args:
        known: the arguments that a recipe may set; None: its keys are not checked.
        above: the recipes that have this one as their base.

    Raises:
        UserError: no such recipe, broken YAML, a key that is not an argument, or recipes that are each other's base.
    """
    if name in above:
        raise UserError(f"recipe {name!r} is its own base, by way of {' and '.join(above)}: expected an end")
    path = Path(name)
    if path.is_dir() and name not in recipes():  # a folder may be called like one, as that of its output
        raise UserError(f"recipe {name!r} is a folder: expected a YAML file or a packaged recipe")
    if not path.is_file():
        if name not in recipes():
            raise UserError(
                f"recipe {name!r}: no such file or packaged recipe; `itrd recipes` lists them{nearest(name, recipes())}"
            )
        return packaged(name)
    values = _read(path)
    base = values.pop("base", None)
    for key in values:
        if known is not None and key not in known:
            raise UserError(f"{path}: unknown key {key!r}; see `itrd distill --help`{suggest(str(key), known)}")
    if base is None:
        return values
    beside = path.parent / str(base)
    base_values = read_recipe(str(beside) if beside.is_file() else str(base), known, [*above, name])
    if "losses" in values:
        base_values.pop("label", None)
    return with_changes(base_values, values)


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments with some changed; ``lr_milestones`` keep their share of ``num_train_epochs``.

    Example:
        >>> with_changes({"num_train_epochs": 240, "lr_milestones": [150, 180]}, {"num_train_epochs": 24})
        {'num_train_epochs': 24, 'lr_milestones': [15.0, 18.0]}
    """
    result = {**values, **changes}
    milestones = values.get("lr_milestones")
    if not isinstance(milestones, list) or "lr_milestones" in changes:
        return result
    before, after = values.get("num_train_epochs"), changes.get("num_train_epochs")
    if all(isinstance(number, int | float) and number > 0 for number in (before, after, *milestones)):
        result["lr_milestones"] = [round(epoch * after / before, 6) for epoch in milestones]
    return result  # other values are refused where they are parsed


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
        student = "your --student" if values["student"] is None else str(StudentSpec.read(values["student"]))
        rows.append([name, values.get("label", ""), losses, student])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns as wide as their longest cell, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
