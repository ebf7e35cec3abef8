"""Tables of text: Markdown, CSV, and drawn on a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

WIDEST = 10_000  # columns of a terminal
METRIC_TITLES = {"exact_match": "EM", "f1": "F1", "map": "MAP", "mrr@10": "MRR@10", "ndcg@10": "NDCG@10"}
METRIC_TITLES["cross_spearman"] = "spearman, documents by the teacher"

ERROR_METRICS = ("mse",)  # metrics whose lowest value is best


def metric_title(name: str) -> str:
    """What tables call a metric."""
    return METRIC_TITLES.get(name, name)


class Table(NamedTuple):
    """Columns and rows of text, and a line on where they come from."""

    caption: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        return f"{self.caption}\n\n{markdown_table(self.columns, self.rows)}"

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def print_table(table: Table) -> None:
    """Print a table: drawn on a terminal, where that is too narrow turned or wrapped, and as Markdown elsewhere."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        turned = [[column, *values] for column, *values in zip(table.columns, *table.rows, strict=True)]
        drawn = [_draw(table.caption, table.columns, table.rows), _draw(table.caption, turned[0], turned[1:])]
        widths = [console.measure(each, options=console.options.update(width=WIDEST)) for each in drawn]
        fitting = [each for each, width in zip(drawn, widths, strict=True) if width.maximum <= console.width]
        fitting += [each for each, width in zip(drawn, widths, strict=True) if width.minimum <= console.width]
        if fitting:
            console.print(fitting[0])
            return
    print(table.markdown())


def _draw(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, title=Text(caption), title_justify="left", title_style="none")
    for index, column in enumerate(columns):
        drawn.add_column(Text(column), justify="right" if index else "left")
    for row in rows:
        drawn.add_row(*map(Text, row))  # Text: a cell's brackets are not markup
    return drawn


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all columns but the first ``texts`` are numbers."""
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows)]
    return "\n".join([head, "|---" * texts + "|--:" * (len(columns) - texts) + "|", *body])
