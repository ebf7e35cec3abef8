"""The benchmarks run, and the page is that of their records."""

import json
from pathlib import Path

import pytest

import tiny
from forked import run_script
from itrd_nlp.tasks.toy import build_tokenizer, generate

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "scripts" / "bench"


def call(name, *words):
    return run_script(BENCH / f"{name}.py", *words, timeout=900)


@pytest.mark.slow
def test_a_step_is_measured_and_ends_in_one_line_of_json():
    done = call("step_cost", "--shapes", "tiny", "--repeats", "2", "--rows", "fine-tuning", "itrd", "kd, live teacher")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"itrd_share", "itrd_extra_mib", "cached_over_finetune", "cached_memory_over_finetune"} <= set(result)
    assert 0 < result["itrd_share"] < 1 and 0 < result["itrd_extra_mib"] < 2
    rows = {cells[0]: cells[1:] for cells in map(table_row, done.stdout.splitlines()) if cells}
    assert {"fine-tuning", "itrd", "kd, live teacher"} <= set(rows)
    over = {name: float(rows[name][2]) for name in ("fine-tuning", "itrd")}  # in three digits
    assert over == pytest.approx({"fine-tuning": 1, "itrd": result["cached_over_finetune"]}, rel=0.01)
    mib = {name: float(cells[5]) for name, cells in rows.items() if cells[5:] and cells[5][:1].isdigit()}
    assert result["cached_memory_over_finetune"] == pytest.approx(mib["itrd"] / mib["fine-tuning"], rel=0.02)


def table_row(line):
    """The cells of a line of a Markdown table; none of another line."""
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def test_a_row_that_nothing_is_compared_with_is_refused():
    done = call("step_cost", "--rows", "itrd")
    assert done.returncode == 2 and "expected fine-tuning and itrd among them" in done.stderr


@pytest.mark.slow
def test_a_step_with_two_tokenizers_is_measured():
    done = call("alignment", "--shapes", "tiny", "--repeats", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {cells[0]: cells[1:] for cells in map(table_row, done.stdout.splitlines()) if cells}
    assert {"fine-tuning", "kd", "itrd, tokens", "itrd + kd, tokens"} <= set(rows)
    result = json.loads(done.stdout.splitlines()[-1])
    assert float(rows["itrd, mean"][1]) == pytest.approx(result["aligned_over_finetune"], rel=0.01)


@pytest.mark.slow
def test_what_safety_costs_is_measured():
    done = call("safety", "--repeats", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(0 < value < 20 for value in json.loads(done.stdout.splitlines()[-1]).values())


def test_the_page_is_that_of_the_records():
    done = call("page", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_deployed_student_is_set_beside_its_teacher(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    tokenizer = build_tokenizer()
    for name, layers in (("teacher", 6), ("student", 1)):
        tiny.bert(layers=layers, vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(
            tmp_path / name
        )
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{**row, "answers": {"text": [row["context"]], "answer_start": [0]}} for row in generate(8, seed=3)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))  # to which any answer has some F1
    words = [f"--{role}={tmp_path}/{role}" for role in ("teacher", "student")]
    done = call("deploy", *words, f"--validation_file={tmp_path}/data.jsonl", "--repeats=2", "--lengths", "16")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["f1_kept"] > 0.1 and result["times_smaller"] > 1 and result["times_faster_32x16"] > 0
    assert "| student, ONNX int8 |" in done.stdout and "| teacher, PyTorch bf16 |" in done.stdout
