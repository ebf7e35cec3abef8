"""From a recipe and the words of a command line to arguments: YAML sets the defaults, the command line wins."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from itrd_nlp.experiments.config import RunArguments, check_command_line_only
from itrd_nlp.experiments.recipes import TEXT_KEYS, Loader, read_recipe, recipes, with_changes
from itrd_nlp.experiments.suggestions import suggest
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.options import MAPPINGS
from itrd_nlp.utils.command_line import underscored
from itrd_nlp.utils.console import hide_bars
from itrd_nlp.utils.errors import UserError, nearest, one_line

FEW_CHOICES = 9  # up to which a message lists them all


def parse(recipe: str | None, argv: Sequence[str] = ()) -> tuple[RunArguments, ITRDArguments]:
    """Arguments of one run.

    Args:
        recipe: a YAML file or the name of a packaged recipe; None starts from the defaults.
        argv: ``--field value`` pairs, which win; ``--losses.kd.temperature 4`` reaches inside a mapping.

    Raises:
        UserError: an unknown field, a value of the wrong type, or arguments that do not go together.
    """
    values = read_recipe(recipe, _fields()) if recipe else {}
    check_command_line_only(values, str(recipe))
    if recipe:
        name = recipe if recipe in recipes() else Path(recipe).stem
        values["output_dir"] = f"runs/{name}"
    plain = _set_milestones(values, _set_mappings(values, underscored(argv)))
    parser = run_parser()
    try:
        words = [*_as_argv(values, parser), *plain]
        run_args, training_args, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    except UserError:
        raise
    except json.JSONDecodeError as error:  # of TrainingArguments, as what follows
        raise UserError(f"arguments: {error.doc!r:.60} is not JSON ({error.msg}): expected a mapping as JSON") from None
    except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
        raise UserError(f"arguments: {one_line(error)}") from None
    if training_args.disable_tqdm:
        hide_bars()
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0]
        raise UserError(f"unknown argument {unknown[0]!r}; see `itrd distill --help`{suggest(name, _fields())}")
    return run_args, training_args


def run_parser() -> HfArgumentParser:
    """The parser of a run's arguments."""
    parser = _Parser((RunArguments, ITRDArguments), allow_abbrev=False, add_help=False)
    for name, action in parser._option_string_actions.items():
        if action.nargs == 0 and name.startswith("--no_"):  # which repeats the help of what it denies
            action.help = f"--{action.dest} false"
    return parser


class _Parser(HfArgumentParser):
    """Errors in one line instead of argparse's usage page."""

    def error(self, message: str) -> NoReturn:
        wrong = re.fullmatch(r"(argument \S+: invalid choice: '(.*)') \(choose from (.*)\)", message)
        if wrong and len(choices := re.findall(r"[\w.-]+", wrong[3])) > FEW_CHOICES:
            message = f"{wrong[1]}{nearest(wrong[2], choices)}"
        raise UserError(f"{message}; see `itrd distill --help`")


def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for kind in (RunArguments, ITRDArguments) for f in dataclasses.fields(kind)}


def _set_mappings(values: dict[str, Any], argv: list[str]) -> list[str]:
    """Move mappings (``--losses {...}``, ``--losses.kd.weight 2``) from ``argv`` into ``values``; returns the rest."""
    rest, words = [], iter(argv)
    for word in words:
        key, equals, text = word.partition("=")
        path = key[2:].split(".")
        if not key.startswith("--") or (path[0] not in MAPPINGS and len(path) == 1):
            rest.append(word)
            continue
        if path[0] not in MAPPINGS:
            raise UserError(f"{key}: expected a mapping out of {list(MAPPINGS)}{suggest(path[0], MAPPINGS)}")
        text = text if equals else next(words, "--")
        if text.startswith("--"):
            raise UserError(f"{key} has no value: expected `{key} VALUE`")
        _set_inside(values, path, _value(key, text))
    return rest


def texts_of(argv: Sequence[str]) -> dict[str, str]:
    """Each ``--key`` of a command line, and the text behind its equals sign, or else the word after it."""
    texts = {}
    for word, following in pairwise([*argv, ""]):
        key, equals, text = word.partition("=")
        if key.startswith("--"):
            texts[key] = text if equals else following
    return texts


def _set_milestones(values: dict[str, Any], argv: list[str]) -> list[str]:
    """Scale the recipe's milestones where ``argv`` changes its epochs alone; returns ``argv`` without ``null`` ones."""
    texts = texts_of(argv)
    milestones = texts.get("--lr_milestones", "")
    if milestones.lower() in ("null", "none", "[]"):
        values.pop("lr_milestones", None)
        index = [word.partition("=")[0] for word in argv].index("--lr_milestones")
        return argv[:index] + argv[index + (1 if "=" in argv[index] else 2) :]
    if "--lr_milestones" not in texts and "--num_train_epochs" in texts:
        with suppress(ValueError):  # not a number: refused where it is parsed
            values.update(with_changes(values, {"num_train_epochs": float(texts["--num_train_epochs"])}))
    return argv


def _value(key: str, text: str) -> Any:
    if key in ("--teacher", "--student") and text[:1] != "{":
        return text  # a name, whatever YAML makes of it
    try:
        value = yaml.load(text, Loader)
        is_name = TEXT_KEYS.fullmatch(key.rpartition(".")[2]) and not isinstance(value, str | None)
        return text if is_name else value
    except yaml.YAMLError as error:
        raise UserError(f"{key} {text!r}: expected a YAML value ({one_line(error)})") from None


def _set_inside(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    is_loss = path[0] == "losses"
    if is_loss and len(path) > 1:
        values.setdefault("losses", {"itrd": {}})  # the default, which the command line adds to
    removes = is_loss and len(path) == 2 and value is None
    if is_loss and (removes or len(path) == 1 or path[1] not in (values["losses"] or {})):
        values.pop("label", None)  # it may name the recipe's losses
    inner = values
    for step in path[:-1]:
        mapping = inner.get(step) or {}
        if not isinstance(mapping, Mapping):
            raise UserError(f"--{'.'.join(path)}: {step} is {mapping!r}, not a mapping; give the complete --{path[0]}")
        inner[step] = dict(mapping)
        inner = inner[step]
    if not removes:
        inner[path[-1]] = value
    elif path[-1] in inner:
        del inner[path[-1]]
    else:
        raise UserError(f"--losses.{path[-1]} null: expected one of the recipe's losses ({', '.join(inner)})")


def _as_argv(values: Mapping[str, Any], parser: HfArgumentParser) -> list[str]:
    """YAML's values as the words of a command line; a list is several words where the argument takes several."""
    argv: list[str] = []
    for key, value in values.items():
        several = parser._option_string_actions[f"--{key}"].nargs == "+"
        if isinstance(value, list) and several:
            if words := [word for word in value if str(word).startswith("-") and not isinstance(word, int | float)]:
                raise UserError(f"{key} holds {words[0]!r}: expected values, not arguments")
            argv += [f"--{key}", *map(str, value)]
        elif isinstance(value, list | dict) or key in MAPPINGS:
            argv.append(f"--{key}={json.dumps(value)}")
        elif value is not None:
            argv.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
        elif _fields()[key].default is not None:
            raise UserError(f"{key} is null: expected a value; leave the key out for its default")
    return argv
