"""What a terminal shows, and what a file gets instead."""

import io
import re
import sys

import pytest

import tiny
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.training.progress import print_table, progress
from itrd_nlp.utils.tables import Table

TABLE = Table("Three seeds [95 % interval]", ["", "F1", "difference"], [["ITRD", "66.13", "[/b] [+9.25, +13.79]"]])


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()

    def begin():  # pytest sets stdout once more between fixtures and test
        monkeypatch.setattr(sys, "stdout", screen)
        return screen

    return begin


def trainer(folder, **options):
    arguments = ITRDArguments(
        str(folder), losses={"itrd": {}, "kd": {}}, max_steps=4, logging_steps=2, use_cpu=True, **options
    )
    return ITRDTrainer(
        tiny.bert(layers=2),
        tiny.bert(),
        arguments,
        tiny.collate,
        tiny.rows(32),
        eval_dataset=tiny.rows(8),
        compute_metrics=lambda prediction: {"exact_match": 12.5, "f1": 37.25},
    )


def test_a_terminal_shows_a_drawn_table_with_every_cell_as_it_is(terminal):
    screen = terminal()
    print_table(TABLE)
    assert all(cell in screen.text() for cell in [TABLE.caption, *TABLE.columns, *TABLE.rows[0]])
    assert "|" not in screen.text()


def test_elsewhere_a_table_is_markdown(capsys):
    print_table(TABLE)
    assert capsys.readouterr().out == f"{TABLE.markdown()}\n"


def test_a_terminal_shows_steps_terms_scores_and_time_left(terminal, tmp_path):
    screen = terminal()
    trained = trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    with progress(trained, "student"):
        trained.train()
    text = screen.text()
    logged = next(log for log in reversed(trained.state.log_history) if "loss" in log)
    assert "student" in text and "4/4" in text and "left" in text
    for term in ("loss", "task", "itrd/correlation", "itrd/mutual_information", "kd"):
        assert f"{term} {logged[term]:.4g}" in text
    assert "EM 12.50" in text and "F1 37.25" in text and "runtime" not in text
    assert "{'loss'" not in text and "/4 [" not in text  # neither Trainer's lines nor its bar
    assert sys.stdout is screen  # given back


def test_evaluation_alone_is_shown_too(terminal, tmp_path):
    screen = terminal()
    evaluated = trainer(tmp_path)
    with progress(evaluated, "evaluating"):
        evaluated.predict(tiny.rows(8))
    assert "evaluating" in screen.text() and "1/1" in screen.text()


def test_what_ends_training_gives_the_terminal_back(terminal, tmp_path):
    screen = terminal()
    trained = trainer(tmp_path)
    trained.nonfinite.check = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), progress(trained, "student"):
        trained.train()
    assert sys.stdout is screen and screen.getvalue().endswith("\x1b[?25h")  # the cursor is shown


def test_elsewhere_training_logs_lines_without_a_bar(capsys, tmp_path):
    trained = trainer(tmp_path)
    with progress(trained, "student"):
        trained.train()
    out, err = capsys.readouterr()
    assert sum("itrd/correlation" in line for line in out.splitlines()) == 2
    assert "/4 [" not in err


def test_a_display_that_was_switched_off_stays_off(terminal, tmp_path):
    screen = terminal()
    trained = trainer(tmp_path, disable_tqdm=True)
    with progress(trained, "student"):
        trained.train()
    assert "\x1b" not in screen.getvalue() and screen.getvalue().count("itrd/correlation") == 2
