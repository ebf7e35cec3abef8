"""Recipes: YAML files by path or packaged name, each on top of its base."""

import re
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from itrd_nlp.errors import UserError, nearest


class Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 3e-5 is a number, as everyone expects."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def recipes() -> list[str]:
    """Names of the packaged recipes, e.g. ``squad/t6-itrd``; files named with an underscore are bases of others."""
    root = resources.files("itrd_nlp") / "recipes"
    with resources.as_file(root) as folder:
        return sorted(
            path.relative_to(folder).with_suffix("").as_posix()
            for path in folder.rglob("*.yaml")
            if path.name[0] != "_"
        )


def read_recipe(name: str, known: Collection[str], above: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, or a packaged recipe by its name.

    Its key ``base`` names another recipe, by its packaged name or its path from this file, whose values hold where it
    has none of its own.

    Args:
        known: the arguments that a recipe may set.
        above: the recipes that name this one as their base.

    Raises:
        UserError: no such recipe, broken YAML, a key that is no argument, or recipes that are each other's base.
    """
    if name in above:
        raise UserError(f"recipe {name!r} is its own base, by way of {' and '.join(above)}: expected an end")
    path = Path(name)
    if not path.is_file():
        if name not in recipes():
            raise UserError(
                f"recipe {name!r}: no such file or packaged recipe; `itrd recipes` lists them{nearest(name, recipes())}"
            )
        path = Path(str(resources.files("itrd_nlp") / "recipes" / f"{name}.yaml"))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    base = values.pop("base", None)
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}; see `itrd distill --help`{nearest(str(key), known)}")
    if base is None:
        return values
    beside = path.parent / str(base)
    return {**read_recipe(str(beside) if beside.is_file() else str(base), known, [*above, name]), **values}
