"""A file of a finished run that is damaged is named, and made again as it was."""

import hashlib
import json
import shutil

import pytest

from experiments.test_run import SMALL
from itrd_nlp.cli.main import main
from training.test_checkpoint import cut, flip

STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
RECIPE = {**SMALL, **STEPS, "teacher_training": STEPS, "bf16": False}
COMPARE = ["compare", "recipe.yaml", "--seeds", "1", "--output_dir", "out", "--shared_dir=shared"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*COMPARE, "--teacher_cache", "cache"]) == 0
    return folder


def models(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
        if "checkpoint" not in str(path)
    }


def scores(folder):
    record = json.loads((folder / "out" / "recipe" / "seed-1" / "record.json").read_text())
    return record["metrics"], record["examples"], record["digests"]


FILES = {  # of each kind one, and whether the record must go for it to be read again
    "the record": ("out/recipe/seed-1/record.json", False),
    "what it was asked": ("out/recipe/seed-1/inputs.json", False),
    "the student": ("out/recipe/seed-1/student/model.safetensors", True),
    "the student's results": ("out/recipe/seed-1/student/finished.json", True),
    "the student's tokenizer": ("out/recipe/seed-1/student/tokenizer.json", True),
    "the teacher": ("shared/bert-*/model.safetensors", True),
    "the teacher's results": ("shared/bert-*/finished.json", True),
    "the undistilled student": ("shared/undistilled-*/model.safetensors", True),
    "an evaluation": ("shared/evaluated/*.json", True),
}


@pytest.mark.promise("damaged on disk")
@pytest.mark.parametrize("change", [cut, pytest.param(flip, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILES)
def test_it_is_named_and_made_again(tmp_path, monkeypatch, capsys, finished, kind, change):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    pattern, unseen = FILES[kind]
    path = next((tmp_path / "run").glob(pattern))
    change(path)
    if unseen:
        (tmp_path / "run" / "out" / "recipe" / "seed-1" / "record.json").unlink()
    assert main([*COMPARE, "--teacher_cache", "cache"]) == 0
    said = capsys.readouterr().err
    assert path.name in said and any(word in said for word in ("damaged", "not JSON", "not a record"))
    assert models(tmp_path / "run") == models(finished) and scores(tmp_path / "run") == scores(finished)


@pytest.mark.promise("damaged on disk")
@pytest.mark.parametrize("change", [cut, flip])
def test_a_plan_that_is_damaged_is_told_and_not_guessed(tmp_path, monkeypatch, capsys, finished, change):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    folder = tmp_path / "run" / "out" / "recipe" / "seed-1"
    change(folder / "plan.json")
    (folder / "record.json").unlink()
    assert main([*COMPARE, "--teacher_cache", "cache"]) == 2
    said = capsys.readouterr()
    assert "plan.json" in said.err and "--overwrite true" in said.err.splitlines()[-1]
    assert main([*COMPARE, "--teacher_cache", "cache", "--overwrite", "true"]) == 0
    assert scores(tmp_path / "run") == scores(finished)
