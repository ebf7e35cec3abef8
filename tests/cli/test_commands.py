"""The commands of ``itrd``: each has help with examples that are real ones."""

import shutil
import subprocess
import sys

import pytest

import test_readme
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.cli.main import main


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
    code = "import sys\nfrom itrd_nlp.cli.main import main\ntry:\n  main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    for name in COMMANDS:
        done = subprocess.run([sys.executable, "-c", code, name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and name in done.stdout, done.stderr


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
