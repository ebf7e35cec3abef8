"""A report as one HTML page that needs no other file."""

import re
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from itrd_nlp.utils.tables import Table


def html(tables: Sequence[Table], figures: Mapping[str, Sequence[str]]) -> str:
    """A page of tables, and of figures as SVG by their title; it fits a phone and a dark screen."""
    pages = Environment(loader=PackageLoader("itrd_nlp", "page"), autoescape=True, trim_blocks=True)
    pages.filters["code"] = _code
    return pages.get_template("report.html").render(tables=tables, figures=figures) + "\n"


def _code(text: str) -> Markup:
    """Text with `words` between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))
