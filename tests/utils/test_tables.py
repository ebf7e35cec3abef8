"""Tables on a terminal and elsewhere."""

import io
import re
import sys

from itrd_nlp.utils.tables import Table, print_table

TABLE = Table("Three seeds [95 % interval]", ["", "F1", "difference"], [["ITRD", "66.13", "[/b] [+9.25, +13.79]"]])


def test_a_terminal_shows_a_drawn_table_with_every_cell_as_it_is(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", screen)
    print_table(TABLE)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert all(cell in text for cell in [TABLE.caption, *TABLE.columns, *TABLE.rows[0]])
    assert "|" not in text


def test_elsewhere_a_table_is_markdown(capsys):
    print_table(TABLE)
    assert capsys.readouterr().out == f"{TABLE.markdown()}\n"
