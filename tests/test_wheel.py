"""The wheel holds all that a run needs: it is built, unpacked elsewhere and distils from there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = (
    *(
        "--teacher_training",
        "{max_steps: 1}",
        "--max_steps",
        "1",
        "--max_train_samples",
        "16",
        "--max_eval_samples",
        "8",
    ),
    *("--latency", "false", "--use_cpu", "true", "--bf16", "false"),
)


def python(*words: object, **options: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "itrd_nlp", folder / "source" / "itrd_nlp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    python(*pip, "wheel", folder / "source", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    (wheel,) = folder.glob("itrd_nlp-*.whl")
    python(*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


def test_an_installed_wheel_distils_a_packaged_recipe(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = python("-c", "import itrd_nlp; print(itrd_nlp.__file__)", cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(installed)
    python("-m", "itrd_nlp.cli", "distill", "toy/t1-itrd", *SHORT, cwd=tmp_path, env=environment)
    (record,) = tmp_path.glob("runs/**/record.json")
    assert {"teacher", "baseline", "student"} == set(json.loads(record.read_text())["metrics"])
    assert (record.parent / "student" / "README.md").is_file()  # from the package's own template


def test_the_wheel_holds_the_files_that_are_no_modules(installed):
    source, package = ROOT / "itrd_nlp", installed / "itrd_nlp"
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {path for path in files if not (package / path).is_file()} == set()
