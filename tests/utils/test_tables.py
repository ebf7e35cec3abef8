"""Tables on a terminal and elsewhere."""

import io
import os
import re
import sys

import pytest
from rich.console import Console

from itrd_nlp.utils.tables import Table, markdown_table, print_table

TABLE = Table("Three seeds [95 % interval]", ["", "F1", "difference"], [["ITRD", "66.13", "[/b] [+9.25, +13.79]"]])


def shown(monkeypatch, table, width):
    """What a terminal shows, without its escapes."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(Console, "_environ", os.environ)  # which datasets replaces where it has several processes
    print_table(table)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_terminal_shows_a_drawn_table_with_every_cell_as_it_is(monkeypatch):
    text = shown(monkeypatch, TABLE, 120)
    assert all(cell in text for cell in [TABLE.caption, *TABLE.columns, *TABLE.rows[0]])
    assert "|" not in text


@pytest.mark.parametrize("width,first", [(140, "matthews"), (80, "teacher"), (40, "|")])
def test_a_narrow_terminal_cuts_no_cell(monkeypatch, width, first):
    columns = ["", "matthews", "accuracy", "difference to KD", "parameters", "peak MiB, training", "s a step"]
    rows = [["teacher", *["108,897,410"] * 6], ["student without distillation", *["[+2.41, +3.12]"] * 6]]
    text = shown(monkeypatch, Table("Of one seed:", columns, rows), width)
    assert all(cell in text for row in (columns, *rows) for cell in row) and "…" not in text
    head = text.partition("Of one seed:")[2].split()[0]
    assert head == first


def test_sentences_in_a_column_are_wrapped(monkeypatch):
    rows = [[f"l{n}", *["1234.5"] * 6, "a larger one keeps too little, so this one was not trained"] for n in range(9)]
    text = shown(monkeypatch, Table("Students:", ["", *"abcdef", "note"], rows), 80)
    assert "|" not in text and "…" not in text and text.count("1234.5") == 54


def test_a_bar_in_a_cell_ends_no_cell():
    assert markdown_table(["", "F1"], [["a|b", "1"]]).splitlines()[2] == r"| a\|b | 1 |"


def test_elsewhere_a_table_is_markdown(capsys):
    print_table(TABLE)
    assert capsys.readouterr().out == f"{TABLE.markdown()}\n"
