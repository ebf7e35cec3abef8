"""A report as one page that needs no other file."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from itrd_nlp.utils.tables import Table

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>itrd report</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>itrd report</h1>"""


def html(tables: Sequence[Table], figures: Mapping[str, Sequence[str]]) -> str:
    """Tables, and figures as SVG by their title; at home on a phone, and on a dark screen."""
    style = (resources.files("itrd_nlp") / "page" / "report.css").read_text(encoding="utf-8")
    parts = [HEAD.format(style=style)]
    parts += [_table(table, f"caption{place}") for place, table in enumerate(tables)]
    for title, drawn in figures.items():
        parts.append(f"<figure><figcaption>{escape(title)}</figcaption>\n<div class=panels>")
        parts += [*drawn, "</div></figure>"]
    return "\n".join([*parts, "</main>", "</body>", "</html>"]) + "\n"


def _table(table: Table, name: str) -> str:
    caption = re.sub("`(.+?)`", r"<code>\1</code>", escape(table.caption))
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in table.columns[1:])
    rows = [f"<tr><td>{escape(table.columns[0])}</td>{head}</tr>"]  # the corner heads nothing where it is empty
    for first, *rest in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        rows.append(f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>")
    body = "\n".join(rows)
    region = f'<div class=table role=region tabindex=0 aria-labelledby="{name}">'
    return f'<p id="{name}">{caption}</p>\n{region}<table>\n{body}\n</table></div>'
