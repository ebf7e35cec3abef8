"""What the site shows of the package itself: arguments, commands, and recipes with their sources line by line."""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from itrd_nlp.cli.command import build_parser
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.experiments.recipes import ABOUT, REPORTED, TABLE, read_about

RECIPES = Path(import_module("itrd_nlp").__file__).parent / "recipes"
UNBROKEN = "\N{NO-BREAK SPACE}"


class Arguments(SphinxDirective):
    """Every field of a dataclass: type, default and help."""

    required_arguments = 1  # dotted name of the dataclass

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(import_module(module), name)
        text = "\n".join(f".. option:: --{field.name}\n\n   {_help(field)}\n" for field in fields(kind))
        return self.parse_text_to_nodes(f".. program:: itrd distill\n\n{text}")


def _help(field: Field) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type).replace("typing.", "")
    choices = field.metadata.get("choices")
    among = f", one of {', '.join(choices)}" if choices else ""
    return f"{_escaped(field.metadata['help'])} *{_escaped(kind + among)}; default* ``{default}``"


def _escaped(text: str) -> str:
    return re.sub(r"([*`|_\\])", r"\\\1", text)


class Commands(SphinxDirective):
    """The help of every command but that of its subject matter, a run's arguments."""

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "100"  # which argparse wraps at
        (choices,) = [a.choices for a in build_parser(COMMANDS)._actions if isinstance(a, argparse._SubParsersAction)]
        parts = [
            self.parse_text_to_nodes(_section(name, choices[name]), allow_section_headings=True) for name in COMMANDS
        ]
        return [node for part in parts for node in part]


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    title = f"itrd {name}"
    text = "\n".join(f"   {line}".rstrip() for line in parser.format_help().splitlines())
    return f"{title}\n{'-' * len(title)}\n\n.. code-block:: text\n\n{text}\n"


class Recipes(SphinxDirective):
    """Every packaged recipe, line by line, with the source that its file gives beside the line."""

    def run(self) -> list[nodes.Node]:
        found = []
        self.env.note_dependency(str(RECIPES / ABOUT))
        for name, text in read_about().items():
            folder = RECIPES / name
            section = nodes.section(ids=[f"recipes-{name}"])
            section += nodes.title(text=name)
            section += nodes.paragraph("", f"{text['about']}; try ", nodes.literal(text=text["example"]))
            for path in sorted(folder.glob("*.yaml"), reverse=True):  # the table before what was reported for it
                self.env.note_dependency(str(path))
                section += _recipe(path)
            found.append(section)
        return found


def _recipe(path: Path) -> list[nodes.Node]:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    introduction = " ".join(line.lstrip("# ") for line in lines[:head])
    rows = [nodes.row("", _cell(setting), _cell(source, nodes.Text)) for setting, source in _split(lines[head:])]
    group = nodes.tgroup("", *[nodes.colspec(colwidth=width) for width in (60, 40)], cols=2)
    titles = nodes.row("", _cell("setting", nodes.Text), _cell("source, or why", nodes.Text))
    group += [nodes.thead("", titles), nodes.tbody("", *rows)]
    return [nodes.paragraph("", "", *_names(path)), nodes.paragraph(text=introduction), nodes.table("", group)]


def _names(path: Path) -> list[nodes.Node]:
    """What the recipes of a file are called."""
    folder = path.parent.name
    if path.name == REPORTED:
        return [nodes.strong(text="Published scores of this table")]
    if path.name != TABLE:
        return [nodes.literal(text=f"{folder}/{path.stem}")]
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: list[nodes.Node] = [nodes.literal(text=f"{folder}/PAIR-METHOD"), nodes.Text("; PAIR: ")]
    found += [*_listed(table["pairs"]), nodes.Text("; METHOD: "), *_listed(table["methods"])]
    return found


def _listed(names: Any) -> list[nodes.Node]:
    pairs = [[nodes.Text(", "), nodes.literal(text=name)] for name in names]
    return [node for pair in pairs for node in pair][1:]


def _split(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each line as the setting, its indentation kept, and the comment behind it."""
    for line in lines:
        setting, _, source = re.sub(r"(^|\s)#\s?", "\0", line, count=1).partition("\0")
        yield re.sub(r"^ +", lambda spaces: UNBROKEN * len(spaces[0]), setting.rstrip()), source


def _cell(text: str, kind: Any = nodes.literal) -> nodes.entry:
    inner = [nodes.literal(text=text)] if kind is nodes.literal and text else [nodes.Text(text)]
    return nodes.entry("", nodes.paragraph("", "", *inner))


def find_by_last_name(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """Resolve ``:class:`UserError``` of a docstring to the one object of the package that is called so."""
    if node.get("refdomain") != "py":
        return None
    ending = f".{node['reftarget']}"
    found = [entry for name, entry in env.domains["py"].objects.items() if name.endswith(ending) and not entry.aliased]
    if len(found) != 1:
        return None
    uri = app.builder.get_relative_uri(node["refdoc"], found[0].docname)
    return nodes.reference("", "", content, refuri=f"{uri}#{found[0].node_id}", internal=True)


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in {"arguments": Arguments, "commands": Commands, "recipes": Recipes}.items():
        app.add_directive(name, directive)
    app.add_lexer("csv", TextLexer)
    app.connect("missing-reference", find_by_last_name)
    return {"parallel_read_safe": True}
