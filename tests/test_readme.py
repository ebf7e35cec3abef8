"""What the README shows, and the pages that its formulas and tables moved to, is what the code does."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import itrd_nlp
import tiny
from forked import run_script
from itrd_nlp.cli.command import build_parser
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.experiments.compare import check_fair, grid, plan_runs
from itrd_nlp.experiments.evaluation import has_data
from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.pairs import pairs_table
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.recipes import recipes
from itrd_nlp.experiments.report import comparison_table, section, update
from itrd_nlp.experiments.tasks import check_teacher
from itrd_nlp.training.record import Record, run_table

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind, text=TEXT):
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def test_the_page_is_short_and_shows_each_thing_once():
    assert TEXT.count("\n") < 160
    assert re.findall(r"<!-- (.+): begin -->", TEXT) == ["base study", "shrink search"]
    (code,) = blocks("python")
    assert code.count("\n") <= 13


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))
def test_links_lead_to_files_and_headings(target):
    name, _, anchor = target.partition("#")
    assert (ROOT / name).exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_recommended_recipe_holds_the_losses_of_the_first_row():
    """Own data, GPUs and Python: what the comparison's best row was distilled with."""
    folder = ROOT / "scripts" / "results" / "comparison-first"
    table = comparison_table([Record.read(path) for path in sorted(folder.glob("*.json"))])
    best = max(table.rows[1:], key=lambda row: float(row[2].split()[0]))
    names = [words for words in map(shlex.split, "".join(blocks("bash")).splitlines()) if "distill" in words]
    parsed = [parse(words[words.index("distill") + 1], []) for words in names]
    assert len(parsed) == 2 and {run_args.label for run_args, _ in parsed} == {best[0]}
    assert all({*training_args.losses} == {"itrd"} for _, training_args in parsed)


def test_the_formulas_equal_the_package():
    page = (ROOT / "docs" / "guides" / "itrd.md").read_text(encoding="utf-8")
    (code,) = blocks("python", page)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "#"))]
    assert len(lines) <= 15
    shown = {}
    exec(code, shown)
    s, t = torch.randn(2, 12, 6)
    torch.testing.assert_close(shown["correlation_loss"](s, t), itrd_nlp.correlation_loss(s, t))
    expected = itrd_nlp.mutual_information_loss(s, t)
    torch.testing.assert_close(shown["mutual_information_loss"](s, t), expected)


def test_the_trainer_example_runs(tmp_path, monkeypatch, tokenizer):
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    code = code.replace('ITRDArguments("out",', 'ITRDArguments("out", max_steps=2, use_cpu=True, disable_tqdm=True,')
    data = tiny.rows(16).remove_columns(["special_tokens_mask"])
    names = {"teacher": tiny.bert(vocab_size=len(tokenizer)), "train_dataset": data, "tokenizer": tokenizer}
    exec(code, names)
    assert names["trainer"].state.global_step == 2


def test_the_added_method_is_the_one_that_stands_here():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code == (ROOT / "itrd_nlp" / "losses" / "vkd.py").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:itrd_nlp|tests|scripts)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in block.splitlines()])
def test_every_command_is_one_that_exists(command):
    words = shlex.split(command.partition(" > ")[0])
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", ROOT / words[1]]).returncode == 0
    elif "distill" in words:
        args, rest = build_parser(COMMANDS).parse_known_args(words[words.index("distill") :])
        assert args.recipe in recipes()
        parse(args.recipe, rest)
    elif words[:2] in (["itrd", "compare"], ["itrd", "sweep"]):
        args, rest = build_parser(COMMANDS).parse_known_args(words[1:])
        named = args.recipes if args.command == "compare" else [f"{args.recipe} {p}" for p in grid(args.grid)]
        runs = plan_runs(named, args.seeds, rest, Path("runs"))
        check_fair(runs)
        for run in runs:
            check_teacher(run.run_args)
            assert has_data(run.run_args)
    elif words[0] == "itrd":
        args, rest = build_parser(COMMANDS).parse_known_args(words[1:])
        assert not rest or args.command in ("evaluate", "export", "benchmark", "shrink")
        parse(None, rest)
    elif words[:3] == ["npm", "install", "--prefix"]:
        assert (ROOT / words[3] / "package.json").is_file()
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words in [["pip", "install", extra] for extra in (".", ".[vision]", ".[export]")]


def test_the_tree_names_files_that_exist():
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    names = re.findall(r"[├└]── (\S+)", tree)
    assert len(names) > 8 and all((ROOT / "itrd_nlp" / name).exists() for name in names)
    public = {path.name for path in (ROOT / "itrd_nlp").glob("*.py")} - {"__init__.py", "errors.py"}
    assert public <= set(names)


def test_the_tables_are_those_of_the_records():
    records = [Record.read(path) for path in sorted((ROOT / "scripts" / "results").glob("*.json"))]
    assert records
    update(ROOT / "docs" / "quickstart.md", section([run_table(record) for record in records]), check=True)


COMPARED = [  # a page, the folder of its records, the marker of their table
    ("docs/results.md", "comparison-first", "itrd first layers"),
    ("docs/results.md", "comparison", "itrd comparison"),
    ("docs/images.md", "images/cifar10", "itrd cifar10"),
]


@pytest.mark.parametrize("page,folder,marker", COMPARED)
def test_the_comparisons_are_those_of_their_records(page, folder, marker):
    records = [Record.read(path) for path in sorted((ROOT / "scripts" / "results" / folder).glob("*.json"))]
    check_same(records)
    update(ROOT / page, section([comparison_table(records)]), check=True, marker=marker)


@pytest.mark.parametrize("folder,marker", [("images/cifar100", "itrd cifar100"), ("images/binary", "itrd binary")])
def test_the_tables_of_pairs_are_those_of_their_records(folder, marker):
    records = [Record.read(path) for path in sorted((ROOT / "scripts" / "results" / folder).glob("*.json"))]
    update(ROOT / "docs" / "images.md", section([pairs_table(records)]), check=True, marker=marker)


def test_the_page_of_promises_is_that_of_its_records():
    done = run_script(ROOT / "scripts" / "reliability.py", "page", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [("ablation.py", "page"), ("base_page.py",), ("tables.py", "cuts", "page"), ("tables.py", "families", "page")],
    ids=" ".join,
)
def test_the_studies_are_those_of_their_records(words):
    done = run_script(ROOT / "scripts" / words[0], *words[1:], "--check")
    assert done.returncode == 0, done.stderr


def test_public_names_load():
    assert all(getattr(itrd_nlp, name) is not None for name in itrd_nlp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = itrd_nlp.Trainer
