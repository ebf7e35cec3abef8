"""Tables of text: Markdown, CSV, and drawn on a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

SHORT = {"exact_match": "EM", "f1": "F1", "map": "MAP", "mrr@10": "MRR@10", "ndcg@10": "NDCG@10"}
SHORT["cross_spearman"] = "spearman, documents by the teacher"


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
    """Print a table: drawn on a terminal, as Markdown elsewhere."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        print(table.markdown())
        return
    drawn = RichTable(box=box.SIMPLE_HEAD, title=Text(table.caption), title_justify="left", title_style="none")
    for index, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # Text: a cell's brackets are no markup
    console.print(drawn)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all columns but the first ``texts`` are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * texts + "|--:" * (len(columns) - texts) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
