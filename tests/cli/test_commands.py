"""The commands of ``itrd``: each has help with examples that are real ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import test_readme
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.cli.main import main

RECORD = Path(__file__).parents[2] / "scripts/results/toy-t1-itrd.json"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_examples(name, capsys):
    try:
        code = main([name, "--help"])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr().out
    assert code == 0 and f"itrd {name}" in out
    assert COMMANDS[name].examples and all(example in out for example in COMMANDS[name].examples)


@pytest.mark.parametrize("example", [example for command in COMMANDS.values() for example in command.examples])
def test_every_example_is_a_command_that_exists(example):
    test_readme.test_every_command_is_one_that_exists(example)


LIGHT = """
import json, sys
from itrd_nlp.cli.main import main
for words in json.loads(sys.argv[1]):
    try:
        assert main(words) == 0, words
    except SystemExit as stop:  # after --help
        assert stop.code == 0, words
    loaded = {"torch", "transformers", "datasets"} & sys.modules.keys()
    assert not loaded, (words, loaded)
"""


def test_commands_that_run_no_model_import_no_heavy_library(tmp_path):
    rows = [
        {"id": "1", "question": "Who?", "context": "Ada wrote it.", "answers": [{"text": "Ada", "answer_start": 0}]}
    ]
    official = {"data": [{"paragraphs": [{"context": "Ada wrote it.", "qas": rows}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(official))
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "predictions.json").write_text('{"1": "Ada"}')
    score = ["score", "--predictions", str(tmp_path / "predictions.json"), "--data"]
    commands = [
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        ["recipes"],
        ["recipes", "itrd"],
        ["cache", str(tmp_path)],
        ["report", str(RECORD)],
        [*score, str(tmp_path / "dev.json")],
        [*score, str(tmp_path / "rows.jsonl")],
    ]
    done = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def complete():
    """What bash offers for the last word of a line."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    done = subprocess.run([sys.executable, "-m", "itrd_nlp.cli", "completion", "bash"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def ask(line):
        words = " ".join(f"'{word}'" for word in line.split(" "))
        text = f'itrd() {{ "{sys.executable}" -m itrd_nlp.cli "$@"; }}\n{done.stdout}\nCOMP_WORDS=({words})\n'
        text += 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_shtab_itrd\nprintf "%s\\n" "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", text], capture_output=True, text=True).stdout.split()

    return ask


@pytest.mark.parametrize(
    "line, offered, not_offered",
    [
        ("itrd co", {"compare", "completion"}, {"distill"}),
        ("itrd distill toy/", {"toy/t1-itrd"}, {"squad/t6-itrd"}),
        ("itrd distill toy/t1-itrd --learning_r", {"--learning_rate"}, {"--losses"}),
        ("itrd compare toy/t1-itrd --un", {"--unfair"}, set()),
        ("itrd distill toy/t1-itrd --nonfinite s", {"stop", "skip"}, set()),
    ],
)
def test_bash_completes_commands_recipes_arguments_and_their_choices(complete, line, offered, not_offered):
    found = set(complete(line))
    assert offered <= found and not not_offered & found


def test_completion_without_its_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'itrd_nlp[completion]'" in capsys.readouterr().err
