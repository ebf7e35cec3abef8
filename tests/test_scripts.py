"""The scripts for the owner of a GPU box, at small shapes."""

import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file

from forked import run_script
from itrd_nlp.experiments.compare import plan_runs
from itrd_nlp.export.export import export
from itrd_nlp.tasks.toy import build_tokenizer, generate
from itrd_nlp.training.record import Record

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def call(*words, **environment):
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_dry_reproduction_takes_two_steps_of_each_run_and_continues(tmp_path):
    config = {"model_type": "bert", "hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 12}
    setting = {
        "DRY": "1",
        "DRY_TEACHER": json.dumps({**config, "intermediate_size": 32}),
        "METHODS": "kd minilmv2 crd",
        "STUDENTS": "t3",
        "SEEDS": "0 1",
        "OUTPUT": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    said = call("bash", SCRIPTS / "reproduce_squad.sh", "--disable_tqdm", "true", **setting)
    assert "EFLOP" in said and "A100" in said and "disk:" in said
    assert said.count("[compare]") == 6 and "| MiniLMv2 |" in (tmp_path / "t3.md").read_text()
    records = [json.loads(path.read_text()) for path in tmp_path.glob("t3/*/*/record.json")]
    assert all(record["arguments"]["max_steps"] == 2 and record["terms"]["student"] for record in records)
    again = call("bash", SCRIPTS / "reproduce_squad.sh", "--disable_tqdm", "true", **setting)
    assert "training with" not in again


def test_the_estimate_grows_with_what_is_asked():
    hours = []
    for seeds in ("1", "3"):
        done = run_script(SCRIPTS / "estimate.py", "--students", "t3", "--methods", "kd", "crd", "--seeds", seeds)
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = [line for line in done.stdout.splitlines() if "A100" in line]
        hours.append(float(line.split()[1]))
    assert 1.5 < hours[1] / hours[0] <= 3


@pytest.mark.parametrize("study", ["ablation", "base"])
def test_the_plan_of_a_study_names_runs_that_can_be(tmp_path, study):
    plan = yaml.safe_load((SCRIPTS / f"{study}.yaml").read_text())
    points = {" ".join(point.split()) for question in plan["questions"] for point in question["points"].values()}
    runs = [run for point in sorted(points) for run in plan_runs([point], [1], plan["arguments"].split(), tmp_path)]
    assert len({run.record for run in runs}) == len(points)
    assert len({run.training_args.per_device_train_batch_size for run in runs}) == 1


def test_committed_records_of_the_ablation_are_those_of_its_plan(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import ablation
    import studies

    plan, questions = ablation.read_plan()
    files = [f"--{split}_file=/data/{split.replace('ing', '')}.json" for split in ("train", "validation")]
    words = [*plan["arguments"].split(), "--teacher=/models/model", *files]
    known = 0
    for point in {point for question in questions for point in question.points.values()}:
        path = studies.record_path(ablation.RESULTS, point, plan["seeds"][0])
        (run,) = plan_runs([point], plan["seeds"], words, tmp_path)
        known += path.is_file()
        assert studies.has_record(path, run, None) == path.is_file(), point
        (other,) = plan_runs([point], plan["seeds"], [*words, "--max_length=128"], tmp_path)
        assert not studies.has_record(path, other, None)
    assert known > 30


def test_a_table_takes_arguments_and_trains_the_tokenizers_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import tables

    study, trained, runs = tables.Study("families"), [], {}
    monkeypatch.setattr(tables, "train_tokenizer", lambda file, spec: trained.append(file) or build_tokenizer())
    monkeypatch.setattr(tables, "train_runs", runs.update)
    folders = {name: tmp_path / name for name in ("data", "minilm", "mpnet")}
    study.run(["stsb"], tmp_path, folders, ["--num_train_epochs=7"])
    assert not trained and {run.training_args.num_train_epochs for run in runs.values()} == {7}
    study.run(["banking77"], tmp_path, folders, [])
    assert trained == [tmp_path / "data" / "banking77" / "train.csv"]


@pytest.mark.parametrize(
    "words,message",
    [
        (["tables.py", "families", "page", "--chek"], "page --chek: expected --check alone"),
        (["tables.py", "families", "page", "--only", "stsb"], "page --only: expected --check alone"),
        (["ablation.py", "page", "--chek"], "page --chek: expected --check alone"),
        (["ablation.py", "run", "--only", "99"], "--only 99: expected numbers from 1 to"),
        (["ablation.py", "run", "--learning_rat=1"], "did you mean"),
    ],
    ids=str,
)
def test_mistakes_in_the_words_of_a_study_are_one_line(words, message):
    done = subprocess.run([sys.executable, str(SCRIPTS / words[0]), *words[1:]], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["families", "cuts"])
def test_plans_of_tables_name_runs_that_can_be(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import tables

    assert name in tables.STUDIES
    study = tables.Study(name)
    folders = {name: tmp_path / name for name in ("data", "minilm", "mpnet")}
    for table, spec in study.plan["tables"].items():
        runs = study.runs_of(table, tmp_path, folders, ["--bf16=true"])
        assert len(runs) == len(spec["seeds"]) * len(spec["points"])
        assert spec["against"] in spec["points"]
        assert len({run.training_args.num_train_epochs for run in runs.values()}) == 1
    assert all(f"## {spec['title']}" in study.page() for spec in study.plan["tables"].values())


def test_a_table_shows_the_seeds_that_all_its_rows_have(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import tables

    study = tables.Study("families")
    study.results = tmp_path
    monkeypatch.setattr(tables.Record, "read", lambda path: path.name)
    (tmp_path / "stsb").mkdir()
    first, second, *_ = (
        [study.record_path("stsb", label, seed) for seed in study.plan["tables"]["stsb"]["seeds"]]
        for label in study.plan["tables"]["stsb"]["points"]
    )
    for path in (*first[:2], second[0]):
        path.touch()
    assert [*study.records_of("stsb")] == [first[0].name, second[0].name]
    second[0].unlink()  # a row that has not begun
    assert [*study.records_of("stsb")] == [path.name for path in first[:2]]


def test_tokenizers_of_the_study_are_trained_on_its_texts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import tables

    texts = [f"the king of the city number {i}" for i in range(50)]
    (tmp_path / "rows.csv").write_text("\n".join(["text", *texts, "Ada"]))
    for kind, lower in (("byte-level BPE", True), ("Unigram", False)):
        spec = {"kind": kind, "pieces": 300, "columns": ["text"], "lower": lower}
        tokenizer = tables.train_tokenizer(tmp_path / "rows.csv", spec)
        ids = tokenizer("the king")["input_ids"]
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "the king"
        assert (tokenizer("Ada")["input_ids"] == tokenizer("ada")["input_ids"]) == lower


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    kinds = {"single_gpu": "NO", "cpu": "NO", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type.value == kinds.get(path.stem, "MULTI_GPU")
    words = [word for line in path.read_text().splitlines() if "accelerate launch" in line for word in line.split()]
    assert f"scripts/accelerate/{path.name}" in words
    known = {field.name for field in fields(FullyShardedDataParallelPlugin)}
    assert {key.removeprefix("fsdp_") for key in config.fsdp_config} - {"version"} <= known


def test_accelerate_launches_with_the_configuration_for_cpus():
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
    done = subprocess.run([*words, "-m", "itrd_nlp.cli", "recipes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "toy/t1-itrd" in done.stdout, done.stderr[-2000:]


def test_squad_is_cut_into_the_files_that_were_measured(shared, tmp_path):
    files = [json.loads((shared / "data" / "squad" / f"{name}.json").read_text()) for name in ("train", "validation")]
    unused = {"title": "Kenya", "paragraphs": [{"qas": [{}] * 9}]}
    articles = [*files[1]["data"], unused, *files[0]["data"]]
    (tmp_path / "dev.json").write_text(json.dumps({"data": articles}))
    command = [sys.executable, "scripts/split_squad.py", str(tmp_path / "dev.json"), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "validation")]
    assert found == files
    (tmp_path / "dev.json").write_text(json.dumps({"data": articles[1:]}))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "split_squad: error: validation: 1048 questions, expected 1156; take SQuAD's dev-v1.1.json\n"


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    listed = text[text.index("install_requires =") : text.index("[options.packages.find]")]
    bounds = dict(re.findall(r"^    ([a-z]+)>=([\d.]+)", listed, re.MULTILINE))
    pins = dict(re.findall(r"^([a-z]+)==([\d.]+)", (SCRIPTS / "oldest.txt").read_text(), re.MULTILINE))
    assert bounds.keys() == pins.keys()
    assert all(pins[name] == bound or pins[name].startswith(f"{bound}.") for name, bound in bounds.items())


def squad_file(path, articles, questions):
    """A file in SQuAD's layout, of generated questions."""
    rows = iter(generate(articles * questions, seed=articles))
    data = []
    for i in range(articles):
        paragraphs = [
            {"context": row["context"], "qas": [{"id": f"{i}-{n}", "question": row["question"], "answers": answers}]}
            for n, row in zip(range(questions), rows, strict=False)
            if (answers := [{"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}])
        ]
        data.append({"title": f"article {i}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return str(path)


@pytest.mark.slow
def test_the_base_study_runs_continues_and_shows_itself(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    base, base_page = importlib.import_module("base"), importlib.import_module("base_page")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = {"model_type": "mpnet", "hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 12}
    config |= {"intermediate_size": 32, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    plan = copy.deepcopy(base.PLAN)
    plan["rates"] |= {
        "training": 20,
        "validation": 10,
        "values": [1e-4],
        "points": {"KD": plan["rates"]["points"]["KD"]},
    }
    plan["stages"] = {
        "t3": {"seeds": [42], "recipes": ["t3-best", "t3-textbrewer"]},
        "t6": {"seeds": [42], "recipes": ["t6-best", "t6-textbrewer"]},
        "seeds": {"seeds": [43], "recipes": ["t3-best"]},
    }
    plan["questions"] = plan["questions"][3:4]
    exported, benchmark = {}, base.benchmark

    def export_once(source, output):  # an export takes ten seconds
        if not exported:
            exported["folder"] = output
            return export(source, output)
        return shutil.copytree(exported["folder"], output)

    def few(models):
        return {name: models[name] for name in ("teacher", "t3")}

    monkeypatch.setattr(base, "export", export_once)
    monkeypatch.setattr(base, "benchmark", lambda models, **options: benchmark(few(models), **options))
    monkeypatch.setattr(base, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(base, "PLAN", plan)
    monkeypatch.setattr(base_page, "PLAN", plan)
    monkeypatch.setattr(base_page, "PAGE", tmp_path / "base.md")
    readme = tmp_path / "README.md"
    readme.write_text(f"<!-- {base_page.MARKER}: begin -->\n<!-- {base_page.MARKER}: end -->\n")
    monkeypatch.setattr(base_page, "README", readme)
    words = ["--teacher", json.dumps(config)]
    words += ["--tokenizer", str(tmp_path / "tokenizer"), "--max_length", "128", "--doc_stride", "32"]
    words += ["--num_train_epochs", "1"]
    words += ["--teacher_training.num_train_epochs", "1", "--disable_tqdm", "true", "--bf16", "false"]
    words += ["--train_file", squad_file(tmp_path / "train.json", 6, 12)]
    words += ["--validation_file", squad_file(tmp_path / "validation.json", 3, 4)]
    test_file = Path(squad_file(tmp_path / "test.json", 4, 3))
    stages = ["teacher", "rates", *plan["stages"], "questions", "test", "deploy"]
    base.Study(tmp_path / "runs", test_file, words).run(stages)
    monkeypatch.setattr(sys, "argv", ["base_page.py"])
    base_page.main()
    text = (tmp_path / "base.md").read_text()
    assert "## 3 layers" in text and "## 6 layers" in text and "not run" not in text and "not measured" not in text
    assert text.count("| TextBrewer |") == 4  # quality and cost at both sizes
    (line,) = [line for line in readme.read_text().splitlines() if line.startswith("| TextBrewer |")]
    assert len(re.findall(r"\d+\.\d\d / \d+\.\d\d", line)) == 2  # EM / F1 at both sizes
    assert re.search(r"in PyTorch fp32: 3 layers \d+ times \(\d+\.\d\d F1, \d+ MiB\)\.\n", readme.read_text())
    layers = [path.name for path in (tmp_path / "runs").glob("cache/*/*@all_tokens")]
    assert sorted(layers) == sorted(f"mpnet.encoder.layer.{name}@all_tokens" for name in ("0-input", 1, 3, 5, 7, 9, 11))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("t*.json")}
    base.Study(tmp_path / "runs", test_file, words).run(stages)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("t*.json")} == written
    words += ["--warmup_steps", "0", "--overwrite", "true"]
    base.Study(tmp_path / "runs", test_file, words).run(["t3"])  # records are made again
    assert any("baseline" in Record.read(path).metrics for path in (tmp_path / "results").glob("t3*seed-42.json"))
