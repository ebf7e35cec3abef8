"""A dry run against the run that it foretells."""

import json
import os
import subprocess
import sys

import pytest

import tiny
from experiments.test_run import SMALL
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.dry_run import _Watch, dry_run
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.utils.errors import UserError


@pytest.fixture
def arguments(tmp_path):
    def make(*argv, **changes):
        path = tmp_path / "small.yaml"
        path.write_text(json.dumps({**SMALL, "max_steps": -1, "num_train_epochs": 3, **changes}))
        places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "shared")]
        return parse(str(path), [*places, "--teacher_cache", str(tmp_path / "cache"), *argv])

    return make


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.name != "small.yaml")


def test_it_writes_nothing_and_foretells_the_run(arguments, tmp_path):
    plan = dry_run(*arguments())
    assert not files(tmp_path)
    assert {role: row.doing for role, row in plan.rows.items()} == dict.fromkeys(
        ("teacher", "baseline", "student"), "trained"
    )
    assert "to be written" in plan.cache and plan.cache_bytes > 0
    record = run(*arguments())
    for role, row in plan.rows.items():
        assert row.steps == (2 if role == "teacher" else 15)
        assert 0 < row.step_seconds < 100 * record.step_seconds[role]
        assert row.seconds >= row.steps * row.step_seconds and row.disk_mib >= record.size_mib[role]
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    assert 0.5 * stored < plan.cache_bytes < 2 * stored


def test_what_is_there_is_reused(arguments, tmp_path):
    run(*arguments())
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    plan = dry_run(*arguments())
    assert all(row.doing.startswith("reused: ") and not row.steps for row in plan.rows.values())
    other = dry_run(*arguments("--seed", "3", "--output_dir", str(tmp_path / "other")))
    assert [row.doing.partition(":")[0] for row in other.rows.values()] == ["reused", "trained", "trained"]
    with pytest.raises(UserError, match="differs in losses"):
        dry_run(*arguments(losses={"itrd": {"alpha": 2}}))
    again = dry_run(*arguments("--overwrite", "true", losses={"itrd": {"alpha": 2}}))
    assert again.rows["student"].doing == "trained" and again.rows["baseline"].doing.startswith("reused")
    assert before == {path: path.stat().st_mtime_ns for path in files(tmp_path)}


def test_a_live_teacher_is_part_of_each_step(arguments):
    _, cached = arguments(), dry_run(*arguments("--baseline", "false"))
    live = dry_run(*arguments("--teacher_cache", "off", "--baseline", "false"))
    assert "runs on each batch" in live.cache and live.cache_bytes == 0 < cached.cache_bytes
    assert live.rows["student"].seconds == pytest.approx(live.rows["student"].step_seconds * 15)


def test_a_teacher_whose_features_alone_are_read_takes_time_too(arguments, monkeypatch):
    """Hooks stop its forward pass."""
    ends, timed = [], _Watch._teacher_ends
    monkeypatch.setattr(_Watch, "_teacher_ends", lambda self, *given: ends.append(timed(self, *given)))
    dry_run(*arguments("--losses", "{itrd: {}}", "--baseline", "false"))
    assert len(ends) >= 2


def test_checkpoints_count_on_disk(arguments):
    none = dry_run(*arguments("--save_strategy", "no", "--baseline", "false")).rows["student"]
    two = dry_run(*arguments("--save_strategy", "epoch", "--baseline", "false")).rows["student"]
    five = dry_run(
        *arguments("--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9", "--baseline", "false")
    ).rows["student"]
    best = dry_run(
        *arguments(save_strategy="best", eval_strategy="epoch", metric_for_best_model="f1", baseline=False)
    ).rows["student"]
    assert best.disk_mib == two.disk_mib == pytest.approx(7 * none.disk_mib) and five.disk_mib == pytest.approx(
        16 * none.disk_mib
    )


def test_a_schedule_that_follows_the_score_needs_no_evaluation(arguments):
    words = ("--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "epoch", "--baseline", "false")
    assert dry_run(*arguments(*words)).rows["student"].steps == 15


def test_the_run_s_mistakes_are_told(arguments):
    with pytest.raises(UserError, match="layer_map has the pair"):
        dry_run(*arguments(layer_map=[[9, 1]]))


def test_the_command_prints_the_plan(arguments, tmp_path, capsys):
    arguments(losses={})
    assert main(["distill", str(tmp_path / "small.yaml"), "--dry_run", "--output_dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "| teacher | trained | 2 |" in out and "| student | trained | 15 |" in out and "baseline" not in out
    assert "in all; evaluation comes on top" in out and "nothing is distilled" in out and "free" in out
    assert "loss" not in out and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_print_one_plan(arguments, tmp_path):
    arguments()
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "itrd_nlp.cli", "distill"]
    places = ["--output_dir", str(tmp_path / "out"), "--shared_dir", str(tmp_path / "shared"), "--use_cpu", "true"]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "small.yaml"), "--dry_run", *places],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Plan of") == 1 and "| student | trained | 9 |" in done.stdout  # 40 examples in 16s
    assert not (tmp_path / "out").exists()


def test_without_labels_the_undistilled_student_is_not_trained(tmp_path, tokenizer):
    tiny.bert(vocab_size=len(tokenizer), max_position_embeddings=512).bert.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.csv").write_text("text\n" + "the king of the city\n" * 20)
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,score\nthe king,the city,1\nthe house,the river,2\n")
    words = [f"--{name}={tmp_path / place}" for name, place in (
        ("teacher", "teacher"), ("train_file", "texts.csv"), ("validation_file", "pairs.csv"), ("output_dir", "out"),
        ("shared_dir", "kept"), ("teacher_cache", "cache"),
    )]  # fmt: skip
    plan = dry_run(*parse("embed/l3-itrd", [*words, "--student.layers=first:1", "--use_cpu=true"]))
    assert plan.rows["baseline"].doing.startswith("left untrained") and plan.rows["student"].doing == "trained"
