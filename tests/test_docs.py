"""The documentation builds without a warning, and what it shows is what the code does."""

import configparser
import dataclasses
import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

import itrd_nlp
import test_readme
import tiny
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.recipes import read_about, recipes
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.losses import LOSSES
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.training.options import DistillationOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
CHECKED = {"bash", "python", "yaml", "csv", "json", "text"}  # text: what is printed, and trees of files
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, kind):
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == kind]


def each(kind):
    """A case for every block of a kind, named by its page."""
    return [pytest.param(block, id=f"{page.stem}-{i}") for page in PAGES for i, block in enumerate(blocks(page, kind))]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Every page of the built site as text."""
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library, reason="builds the site: pip install '.[docs]'")
    output = tmp_path_factory.mktemp("site")
    words = ["sphinx", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet", "docs", output]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.relative_to(output).as_posix(): path.read_text(encoding="utf-8") for path in output.rglob("*.html")}
    assert len(pages) > 15
    return pages


def text_of(page):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def test_every_page_is_reached_from_the_first_and_none_needs_a_network(site):
    sources = [path for pattern in ("*.md", "*.rst") for path in (ROOT / "docs").rglob(pattern)]
    links = set(re.findall(r'class="reference internal" href="([^"#]+)"', site["index.html"]))
    assert {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in sources} <= {
        *links,
        "index.html",
    }
    loads = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]+(?:src|href)=["'](?:https?:)?//""")
    assert not [name for name, page in site.items() if loads.search(page)]


def test_the_reference_names_all_that_there_is(site):
    arguments = site["api/arguments.html"]
    for kind in (RunArguments, DistillationOptions):
        for field in dataclasses.fields(kind):
            assert f'id="cmdoption-itrd-distill-{field.name}"' in arguments, field.name
            assert field.metadata["help"] in text_of(arguments), field.name
    assert all(loss.__name__ in site["api/losses.html"] for loss in LOSSES.values())
    assert all(f"<h2>itrd {name}<" in site["api/commands.html"] for name in COMMANDS)
    assert all(f'<span class="pre">{task}</span></code>' in site["guides/data.html"] for task in TASKS)
    exported = text_of(site["api/index.html"])
    assert all(name in exported for name in itrd_nlp.__all__)


def test_the_recipes_stand_with_every_source(site):
    page = text_of(site["recipes.html"])
    assert all(text in page for about in read_about().values() for text in about.values())
    for path in (ROOT / "itrd_nlp" / "recipes").glob("*/*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for part in re.split(r"\s*#\s*", line.strip()):
                assert " ".join(part.split()) in page, f"{path.name}: {part}"
        if path.name == "_table.yaml":
            table = yaml.safe_load(path.read_text(encoding="utf-8"))
            assert all(f"{path.parent.name}/{p}-{m}" in recipes() for p in table["pairs"] for m in table["methods"])


def test_the_losses_that_compare_samples_are_those_that_say_so():
    page = (ROOT / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
    names = re.search(r"^(.+) compare the samples of a batch", page, re.MULTILINE)[1]
    named = {name.lower() for name in re.split(", | and ", names)}
    assert named == {name for name, loss in LOSSES.items() if loss.needs_statistics}


def test_every_block_is_of_a_kind_that_is_checked():
    for page in PAGES:
        kinds = {kind for kind, _ in BLOCK.findall(page.read_text(encoding="utf-8")) if kind[:1] != "{"}
        assert kinds <= CHECKED, f"{page.name}: {kinds - CHECKED}"


def commands():
    """Every line of every block for a shell; those of the README have tests of their own."""
    found = [line for page in PAGES[1:] for block in blocks(page, "bash") for line in block.splitlines()]
    return [pytest.param(line, id=line[:60]) for line in dict.fromkeys(found)]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_exists(command):
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[2])
        assert extras and {*filter(None, (extras[1] or "").split(","))} <= {*config["options.extras_require"]}
        return
    if words[0] in ("accelerate", "torchrun"):
        module = words.index("-m")
        if words[0] == "accelerate":
            launched = launch_command_parser().parse_args(words[2:module] + ["itrd"])
            assert (ROOT / launched.config_file).is_file()
        assert words[module + 1] == "itrd_nlp.cli"
        command = shlex.join(["itrd", *words[module + 2 :]])
    test_readme.test_every_command_is_one_that_exists(command)


def python_pages():
    return [pytest.param(page, id=page.stem) for page in PAGES[2:] if blocks(page, "python")]


@pytest.mark.parametrize("page", python_pages())
def test_python_runs(page, tmp_path, monkeypatch, tokenizer):
    """The blocks of a page, one after the other, beside tiny models called teacher and student, and tiny data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("itrd_nlp.losses.LOSSES", LOSSES)
    before = dict(LOSSES)
    for name in ("teacher", "student"):
        tiny.bert(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(name)
        tokenizer.save_pretrained(name)
    data = tiny.rows(16).remove_columns(["special_tokens_mask"])
    names = {"train_dataset": data, "eval_dataset": data, "tokenizer": tokenizer, "__name__": page.stem}
    try:
        for block in blocks(page, "python"):
            exec(block, names)
    finally:
        LOSSES.clear()
        LOSSES.update(before)


@pytest.mark.parametrize("block", each("yaml"))
def test_yaml_is_a_recipe(block, tmp_path):
    (tmp_path / "mine.yaml").write_text(block)
    run_args, training_args = parse(str(tmp_path / "mine.yaml"))
    assert run_args.task in TASKS and training_args.losses


@pytest.mark.parametrize("kind, block", [(k, p.values[0]) for k in ("csv", "json") for p in each(k)])
def test_data_can_be_read(kind, block, tmp_path):
    path = tmp_path / f"train.{kind}"
    path.write_text(block)
    columns = read_table(str(path)).columns
    count = block.count("\n") - 1 if kind == "csv" else len(json.loads(block))
    assert None not in columns and {len(values) for values in columns.values()} == {count}
