"""The commands of ``itrd``: each has help with examples that are real ones."""

import subprocess
import sys

import pytest

import test_readme
from itrd_nlp.cli import main
from itrd_nlp.commands import COMMANDS


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


def test_the_help_of_a_command_loads_no_torch():
    code = "import sys\nfrom itrd_nlp.cli import main\ntry:\n  main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    for name in set(COMMANDS) - {"distill"}:  # whose help lists the arguments of Trainer
        done = subprocess.run([sys.executable, "-c", code, name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and name in done.stdout, done.stderr
