"""Tables of text: Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

SHORT = {"exact_match": "EM", "f1": "F1"}


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


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all columns but the first ``texts`` are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * texts + "|--:" * (len(columns) - texts) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
