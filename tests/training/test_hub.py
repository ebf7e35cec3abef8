"""What is published is the student, its tokenizer and its card: these files and bytes, and nothing else."""

import ast
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from transformers import AutoModelForQuestionAnswering

import tiny
from experiments.test_run import SMALL
from itrd_nlp.experiments.compare import plan_runs
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import MARKER, why_incomplete
from itrd_nlp.training.hub import PENDING, in_background, publish, published
from itrd_nlp.utils.errors import UserError
from training.test_trainer import trainer

STUDENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PUSH = ("--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_always_push", "true")
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


@pytest.fixture
def distil(tmp_path):
    def call(*argv, **changes):
        (tmp_path / "mine.yaml").write_text(json.dumps({**SMALL, **changes}))
        places = [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}"]
        return run(*parse(str(tmp_path / "mine.yaml"), [*places, *argv]), "mine")

    return call


def test_a_run_pushes_its_student_and_card(distil, hub, tmp_path):
    distil(*PUSH, **STEPS)
    *before, last = hub.commits
    student = tmp_path / "out" / "student"
    assert {"name": "me/model", "token": None, "private": None, "exist_ok": True} in hub.repos
    assert {commit["repo_id"] for commit in hub.commits} == {"me/model"}
    assert last["files"] == {name: (student / name).read_bytes() for name in STUDENT}
    assert last["commit_message"] == "End of training" and b'from_pretrained("me/model")' in last["files"]["README.md"]
    assert ModelCard(last["files"]["README.md"].decode()).data.model_name == "model"
    # on the way the students of all checkpoints, though only the last one is kept: of none else than the student
    assert [commit["commit_message"] for commit in before] == [f"Training in progress, step {n}" for n in (2, 4, 6)]
    assert all(commit["folder"].parent == student and not commit["folder"].exists() for commit in before)
    assert all({*commit["files"]} == STUDENT - {"README.md"} for commit in before)
    assert before[-1]["files"]["model.safetensors"] == last["files"]["model.safetensors"]
    assert before[0]["files"]["model.safetensors"] != last["files"]["model.safetensors"]


def test_what_was_pushed_loads(distil, hub, tmp_path):
    distil(*PUSH, baseline=False)
    for name, content in hub.commits[-1]["files"].items():
        (tmp_path / "cloned").mkdir(exist_ok=True)
        (tmp_path / "cloned" / name).write_bytes(content)
    folders = [tmp_path / "cloned", tmp_path / "out" / "student"]
    a, b = [AutoModelForQuestionAnswering.from_pretrained(folder).state_dict() for folder in folders]
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_a_run_without_a_name_is_named_after_its_folder_and_an_undistilled_one_is_pushed(distil, hub, tmp_path):
    distil("--push_to_hub", "true", losses={}, **STEPS)
    assert {repo["name"] for repo in hub.repos} == {"out"}
    (commit,) = hub.commits
    assert (commit["repo_id"], {*commit["files"]}) == ("me/out", STUDENT) and commit[
        "folder"
    ].parent == tmp_path / "out"


@pytest.mark.parametrize(
    "strategy,places",
    [
        ("checkpoint", {"last-checkpoint"}),
        pytest.param("all_checkpoints", {"checkpoint-2", "checkpoint-4", "checkpoint-6"}, marks=pytest.mark.slow),
    ],
)
def test_checkpoints_are_pushed_whole_where_they_are_asked_for(distil, hub, tmp_path, strategy, places):
    distil(*PUSH, "--hub_strategy", strategy, baseline=False, **STEPS)
    whole = [commit for commit in hub.commits if commit["commit_message"].endswith(", checkpoint")]
    assert len(whole) == 3 and {name.split("/")[0] for commit in whole for name in commit["files"]} == places
    for number, commit in enumerate(whole):
        for name, content in commit["files"].items():
            path = tmp_path / "cloned" / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    folders = [path.parent for path in (tmp_path / "cloned").rglob(MARKER)]
    assert len(folders) == 3 and not any(why_incomplete(folder) for folder in folders)


def test_only_the_end_is_pushed_where_that_is_asked_for(distil, hub):
    distil(*PUSH, "--hub_strategy", "end", baseline=False, **STEPS)
    assert [commit["commit_message"] for commit in hub.commits] == ["End of training"]


@pytest.mark.promise("secrets")
@pytest.mark.parametrize("strategy", [pytest.param("every_save", marks=pytest.mark.slow), "all_checkpoints"])
def test_no_token_and_no_pickled_arguments_are_pushed_or_kept(distil, hub, tmp_path, capsys, strategy):
    secret = "hf_" + "s" * 34
    distil(*PUSH, "--hub_token", secret, "--hub_strategy", strategy, **STEPS)
    assert {commit["token"] for commit in hub.commits} == {secret} and {repo["token"] for repo in hub.repos} == {secret}
    sent = [
        content for commit in hub.commits for pair in commit["files"].items() for content in (pair[0].encode(), pair[1])
    ]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(sent) > 20 and len(kept) > 20
    assert not any(secret.encode() in content for content in [*sent, *(path.read_bytes() for path in kept)])
    assert not [path for path in kept if path.name == "training_args.bin"] and b"training_args.bin" not in b" ".join(
        sent
    )
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    if strategy == "every_save":  # safetensors and JSON alone, beside the card
        assert {name.rpartition(".")[2] for commit in hub.commits for name in commit["files"]} == {
            "safetensors",
            "json",
            "md",
        }


@pytest.mark.promise("secrets")
@pytest.mark.parametrize("token", ["hf_secret", "hf_secret\u00e9", "hf_secret\n"])
def test_a_hub_that_cannot_be_reached_is_told_before_anything_is_trained(distil, monkeypatch, tmp_path, token):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "itrd_nlp.training.hub.hf_api", lambda: HfApi(endpoint="http://127.0.0.1:9")
    )  # where nobody listens
    with pytest.raises(UserError, match="hub_model_id 'me/model': the Hub does not take it .*hf auth login") as told:
        distil(*PUSH, "--hub_token", token)
    assert "hf_secret" not in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "shared").exists()


@pytest.mark.promise("secrets")
@pytest.mark.parametrize("error", [OfflineModeIsEnabled("no"), HTTPError("Illegal header value b'Bearer hf_secret '")])
def test_what_the_hub_says_is_told_without_the_token(distil, hub, error):
    hub.refuses = error
    with pytest.raises(UserError, match=r"the Hub does not take it .(no|Illegal header value b'Bearer <token> ')\)"):
        distil(*PUSH, "--hub_token", "hf_secret ")


@pytest.mark.promise("secrets")
def test_no_half_of_a_token_is_told(distil, hub):
    hub.refuses = HTTPError("x" * 150 + " hf_" + "s" * 34)
    with pytest.raises(UserError) as told:
        distil(*PUSH, "--hub_token", "hf_" + "s" * 34)
    assert "hf_s" not in str(told.value)


def test_what_fails_on_the_way_is_told_and_what_fails_at_the_end_can_be_tried_again(distil, hub, tmp_path, capsys):
    hub.fails = HTTPError("cut off")
    with pytest.raises(UserError, match="student could not be pushed to me/model .cut off.: it is complete here"):
        distil(*PUSH, baseline=False, **STEPS)
    assert capsys.readouterr().err.count("[push] not uploaded: cut off") == 3
    assert (tmp_path / "out" / "record.json").is_file() and not hub.commits
    hub.fails = None
    distil(*PUSH, baseline=False, **STEPS)
    assert "[student] reusing" in capsys.readouterr().err
    assert [{*commit["files"]} for commit in hub.commits] == [STUDENT]


def test_a_card_changed_by_hand_is_the_one_that_is_pushed(distil, hub, tmp_path):
    distil(baseline=False)
    path = tmp_path / "out" / "student" / "README.md"
    path.write_text(path.read_text() + "\nMine.\n")
    distil(*PUSH, baseline=False)
    assert hub.commits[-1]["files"]["README.md"] == path.read_bytes() and b"Mine." in path.read_bytes()


def test_a_trainer_alone_pushes_nothing_else_of_its_folder(hub, tmp_path, tokenizer):
    for name in ("thesis.txt", ".env", "notes.json", "training_args.bin", "runs/events", "optimizer.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    made = trainer(tmp_path, save_strategy="steps", save_steps=2, hub_model_id="me/model")
    made.processing_class = tokenizer
    made.train()
    assert not hub.repos and not hub.commits  # push_to_hub is not on
    made.push_to_hub("Done", license="mit", token="hf_secret")
    made.push_to_hub(blocking=False, revision="draft").exception()
    first, second = hub.commits
    assert {*first["files"]} == {*second["files"]} == STUDENT
    assert (first["commit_message"], first["token"], second["revision"]) == ("Done", "hf_secret", "draft")
    assert ModelCard(first["files"]["README.md"].decode()).data.license == "mit"
    assert not any(b"hf_secret" in content for content in first["files"].values())


def test_saving_a_trainer_s_model_pushes_as_in_trainer(hub, tmp_path):
    made = trainer(tmp_path, push_to_hub=True, hub_model_id="me/model", hub_strategy="end")
    made.train()
    made.save_model()
    assert [{*commit["files"]} for commit in hub.commits] == [{"README.md", "config.json", "model.safetensors"}]
    assert (
        tmp_path / "itrd_state.safetensors"
    ).is_file()  # of the losses, to resume with: nobody's who uses the student


def test_the_best_checkpoint_is_loaded_once_the_uploads_are_done(hub, tmp_path):
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    made = trainer(tmp_path, push_to_hub=True, hub_always_push=True, eval_dataset=tiny.rows(8), **best, **STEPS)
    made.train()
    assert len(hub.commits) == 3 and all(commit["files"] for commit in hub.commits)


@pytest.mark.parametrize("always,steps", [(False, [2]), (True, [2, 4, 6])])
def test_training_does_not_wait_for_uploads_that_hang(hub, tmp_path, monkeypatch, capsys, always, steps):
    monkeypatch.setattr("itrd_nlp.training.hub_trainer.PATIENCE", 0.2)
    (tmp_path / f"{PENDING}left-by-a-kill").mkdir()
    hub.open.clear()
    made = trainer(tmp_path, push_to_hub=True, hub_always_push=always, **STEPS)
    made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"] and not hub.commits
    said = capsys.readouterr().err
    assert f"waiting for {len(steps)} upload(s)" in said and f"{len(steps)} upload(s) not waited for any longer" in said
    hub.open.set()
    monkeypatch.setattr("itrd_nlp.training.hub_trainer.PATIENCE", 60)
    made._finish_current_push()
    assert [commit["commit_message"] for commit in hub.commits] == [f"Training in progress, step {n}" for n in steps]
    contents = [commit["files"]["model.safetensors"] for commit in hub.commits]
    assert len({*contents}) == len(steps)  # each its own, though its checkpoint was gone by then
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(PENDING)]


def test_an_upload_that_hangs_does_not_keep_the_process():
    before, never = {*threading.enumerate()}, threading.Event()
    job = in_background(never.wait, [])
    (thread,) = {*threading.enumerate()} - before
    assert thread.daemon and not job.done()  # an executor's thread would be joined when Python ends
    never.set()
    assert job.result(timeout=10)


def test_every_vocabulary_of_transformers_is_published(hub, tmp_path):
    folder = Path(transformers.__file__).parent / "models"
    names = set()
    for path in folder.glob("*/tokenization_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and "VOCAB_FILES_NAMES" in [getattr(t, "id", "") for t in node.targets]:
                names |= {value.value for value in node.value.values if isinstance(value, ast.Constant)}
    assert len(names) > 15
    for name in names:
        (tmp_path / name).write_text("x")
    assert set(published(tmp_path)) == names


def test_several_runs_are_not_pushed_into_one_place(tmp_path):
    with pytest.raises(UserError, match="--push_to_hub with several runs: expected it with `itrd distill`"):
        plan_runs(["toy/t1-itrd"], [0, 1], PUSH, tmp_path)


def test_files_in_folders_of_a_sentence_encoder_are_pushed_too(hub, tmp_path):
    for name in ("model.safetensors", "modules.json", "1_Pooling/config.json", "optimizer.pt"):
        (tmp_path / "student" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "student" / name).write_text(name)
    publish(tmp_path / "student", "me/model", ITRDArguments(str(tmp_path), use_cpu=True), "all of it")
    assert set(hub.commits[-1]["files"]) == {"model.safetensors", "modules.json", "1_Pooling/config.json"}
