"""What commands print where the output cannot show every character, and where nobody watches."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys

import pytest
import torch

from cli.test_main import CONTEXT
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.cli.main import main
from itrd_nlp.utils.console import NO_BARS, console, print_json, show_messages, without_repeats
from itrd_nlp.utils.errors import UserError, one_line


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise UserError(f"image {index} is truncated")


def test_an_error_of_a_worker_is_its_own_line_without_its_traceback():
    with pytest.raises(UserError) as raised:
        list(torch.utils.data.DataLoader(Broken(), num_workers=1))
    assert "Traceback" in str(raised.value) and one_line(raised.value, None) == "image 0 is truncated"


ODD = "é ß € 市長 🦊 e\u0301 \u202eשלום \x07 \ud83e \\u00e9"
ENCODINGS = ["cp1252", "latin-1", "ascii", "cp437", "shift_jis", "utf-8", "utf-16"]


@pytest.fixture(params=ENCODINGS)
def pipe(request, monkeypatch):
    """Makes both outputs pipes in some encoding, which refuse what that lacks; returns what was written to one."""

    def begin():  # pytest sets both once more between fixtures and test
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=request.param, errors="strict"))
        return written

    def written(name):
        getattr(sys, name).flush()
        return getattr(sys, name).buffer.getvalue().decode(request.param, "surrogatepass")

    return begin


def test_json_reads_back_from_any_pipe(pipe):
    output = pipe()
    with console():
        print_json({"text": ODD})
    written = output("stdout")
    assert json.loads(written) == {"text": ODD}
    if not sys.stdout.encoding.startswith("utf"):
        assert written.isascii()  # as no reader of JSON expects another encoding than UTF-8
    assert sys.stdout.errors == "strict"  # as it was


def test_what_an_encoding_has_stays(pipe):
    output = pipe()
    with console():
        print("é", ODD, file=sys.stderr)
    assert ("é" in output("stderr")) == (sys.stderr.encoding not in ("ascii", "shift_jis"))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_fails_at_what_it_prints(pipe, name, monkeypatch):
    output = pipe()

    def run(args, rest):
        print(ODD)
        raise UserError(f"{ODD}: expected another")

    # whatever it prints, and whatever it refuses
    monkeypatch.setitem(COMMANDS, name, COMMANDS[name]._replace(run=run, arguments=lambda parser: None))
    assert main([name]) == 2
    assert output("stderr").startswith("itrd: error: ") and "\\ud83e" in output("stdout")


def test_answers_reach_a_pipe_in_cp1252(tmp_path, monkeypatch, tiny_bert, tokenizer):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"id": "1", "question": "who", "context": CONTEXT}, {"id": "2", "question": "who", "context": "市長の"}]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert main(["predict", str(tmp_path / "model"), "--file", str(tmp_path / "q.json")]) == 0
    sys.stdout.flush()
    answers = json.loads(sys.stdout.buffer.getvalue().decode("cp1252"))
    assert answers["1"] in CONTEXT and answers["2"] and answers["2"] in "市長の"


def test_no_bars_in_a_pipe(monkeypatch):
    for name in NO_BARS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with console():
        assert all(os.environ[name] == "1" for name in NO_BARS)
    for name in NO_BARS:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_is_closed_is_no_error(stream):
    number = {"stdout": 1, "stderr": 2}[stream]
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m itrd_nlp.cli recipes toy {number}>&-",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_messages_of_several_runs_are_shown_once(capsys):
    show_messages()
    logger = logging.getLogger("itrd_nlp.test")
    with without_repeats():
        for number in range(2):
            logger.info("[data] 3 rows")
            logger.info("[run] %d", number)
            logger.warning("odd rows")
    logger.info("[data] 3 rows")
    assert capsys.readouterr().err.splitlines() == [
        "[data] 3 rows",
        "[run] 0",
        "odd rows",
        "[run] 1",
        "odd rows",
        "[data] 3 rows",
    ]
