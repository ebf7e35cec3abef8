"""The whole path, small: teacher trained and kept, three rows, record, continuing, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertForSequenceClassification
from transformers import PreTrainedTokenizerFast as tiny_tokenizer

import tiny
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import better_baseline, run
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.text_classification import ClassificationTask
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import read_json, write_json

CONFIG = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = {
    "task": "toy",
    "teacher": {**CONFIG, "intermediate_size": 32, "max_position_embeddings": 256},
    "teacher_training": {"max_steps": 2},
    "student": {"layers": "first:1"},
    "max_train_samples": 40,
    "max_eval_samples": 10,
    "max_length": 128,
    "doc_stride": 32,
    "max_steps": 2,
    "logging_steps": 1,
    "losses": {"itrd": {}, "kd": {}},
    "latency": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.fixture
def arguments(tmp_path):
    path = tmp_path / "small.yaml"

    def make(*argv, **changes):
        places = {"output_dir": tmp_path / "out", "shared_dir": tmp_path / "teachers"}
        places |= {key: changes.pop(key) for key in ("teacher_cache",) if key in changes}
        path.write_text(json.dumps({**SMALL, **changes}))
        return parse(str(path), [*(word for key, place in places.items() for word in (f"--{key}", str(place))), *argv])

    return make


def test_a_run_leaves_three_rows_a_student_and_a_record(arguments, tmp_path, capsys):
    record = run(*arguments(latency=True), "small")
    assert Record.read(tmp_path / "out" / "record.json") == record
    assert set(record.metrics) == {"teacher", "baseline", "student"}
    assert all({"exact_match", "f1"} <= set(row) for row in record.metrics.values())
    assert set(record.seconds) == {"teacher", "baseline", "student"} and set(record.latency_ms) == {
        "teacher",
        "student",
    }
    assert record.parameters["baseline"] == record.parameters["student"] < record.parameters["teacher"]
    assert record.parameters["projectors"] == 32 * 32 + 32
    models = read_json(tmp_path / "out" / "models.json")
    for score, better in ((record.metrics["student"]["f1"], models["baseline"]), (-1.0, None)):
        record.metrics["baseline"]["f1"] = score
        assert better_baseline(record, tmp_path / "out") == better
    loaded = {row: AutoModelForQuestionAnswering.from_pretrained(place) for row, place in models.items()}
    counts = {row: model.num_parameters() for row, model in loaded.items()}
    assert counts == {row: record.parameters[row] for row in ("teacher", "baseline", "student")}
    assert {"task", "itrd/correlation", "itrd/mutual_information", "kd"} <= set(record.terms["student"][-1])
    assert record.data["validation questions"] == 10 and record.arguments["max_steps"] == 2
    err = capsys.readouterr().err
    assert "processes 1, 8 examples a step" in err and "student layer 1 <- teacher layer 1" in err
    student = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "student")
    assert student.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "student")("Who?")["input_ids"]
    metrics = evaluate_saved(*arguments("--teacher", str(tmp_path / "out" / "student")))
    assert metrics == Record.read(tmp_path / "out" / "record.json").metrics["student"]


def test_a_student_may_be_a_new_model(arguments, tmp_path):
    student = {**SMALL["teacher"], "num_hidden_layers": 1, "hidden_size": 16}
    record = run(*arguments(student=student, baseline=False))
    assert record.student_map.startswith("BertForQuestionAnswering: new")
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "student").config.hidden_size == 16


def test_the_teacher_is_kept_for_other_seeds_and_the_baseline_can_be_skipped(arguments, tmp_path, capsys):
    first = run(*arguments("--baseline", "false"))
    assert set(first.metrics) == {"teacher", "student"}
    capsys.readouterr()
    second = run(*arguments("--seed", "3", "--learning_rate", "1e-3", "--output_dir", str(tmp_path / "other")))
    assert "[teacher] reusing" in capsys.readouterr().err
    assert first.metrics["teacher"] == second.metrics["teacher"]
    assert len(list((tmp_path / "teachers").glob("bert-*"))) == 1


@pytest.mark.parametrize("cache", [pytest.param("off", marks=pytest.mark.slow), "auto"])
def test_a_killed_run_continues_and_ends_as_the_whole_one(arguments, tmp_path, monkeypatch, cache):
    from itrd_nlp.training import trainer

    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "teacher_cache": cache}
    whole = run(*arguments("--output_dir", str(tmp_path / "whole"), **steps))
    ask, asked = trainer.ITRDTrainer.ask_teacher, []

    def killed(self, batch):
        if cache == "auto" and self.cache is None:  # storing the answers is not yet training
            return ask(self, batch)
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ask(self, batch)

    monkeypatch.setattr(trainer.ITRDTrainer, "ask_teacher", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments(**steps))
    continued = run(*arguments(**steps))
    assert len(asked) == 4 + 4  # from step 2 on, not from the start
    assert continued.metrics == whole.metrics
    files = [tmp_path / name / "student" / "model.safetensors" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_of_another_training_is_passed_over(arguments, tmp_path, capsys):
    """One that lies in the folder with a higher number, whole, as a training by hand leaves it."""
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "baseline": False}
    steps["teacher_cache"] = "off"  # else the other run leaves outputs in half precision, which the last one reads
    fresh = run(*arguments("--output_dir", str(tmp_path / "fresh"), **steps))
    run(*arguments("--output_dir", str(tmp_path / "other"), **{**steps, "max_steps": 6, "learning_rate": 1e-2}))
    (tmp_path / "out" / "student").mkdir(parents=True)
    foreign = tmp_path / "out" / "student" / "checkpoint-6"
    (tmp_path / "other" / "student" / "checkpoint-6").rename(foreign)
    capsys.readouterr()
    record = run(*arguments(save_total_limit=5, **steps))
    assert "checkpoint-6 is passed over: another run wrote it" in capsys.readouterr().err
    assert record.metrics == fresh.metrics and foreign.is_dir()
    files = [tmp_path / name / "student" / "model.safetensors" for name in ("fresh", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_fields_for_a_new_head_are_checked_and_said_to_be_unused_of_a_trained_teacher(tmp_path, tokenizer, caplog):
    config = tiny.config(2, vocab_size=len(tokenizer), num_labels=2)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = ClassificationTask(tokenizer, Rows("a.csv", [["the king", "of"]], [0, 1]), None)
    caplog.set_level("INFO")
    model, complete = load_model(str(tmp_path), task, 0, {"hidden_act": "relu"})
    assert complete and model.config.hidden_act == "gelu"
    assert "needs no new head: teacher_config {'hidden_act': 'relu'} is not used" in caplog.text
    with pytest.raises(UserError, match="has no field 'hiden_act'; did you mean 'hidden_act'"):
        load_model(str(tmp_path), task, 0, {"hiden_act": "relu"})


@pytest.mark.slow
def test_a_run_that_another_version_began_is_not_continued(arguments, tmp_path):
    run(*arguments())
    plan = read_json(tmp_path / "out" / "plan.json")
    write_json(tmp_path / "out" / "plan.json", {key: value for key, value in plan.items() if key != "version"})
    with pytest.raises(UserError, match="holds a run that another version of itrd_nlp began"):
        run(*arguments())


@pytest.mark.parametrize(
    "changes,name",
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size true"),
        ({"dataloader_in_order": False}, "dataloader_in_order false"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics true"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches false"),
        ({"prediction_loss_only": True}, "prediction_loss_only true"),
        ({"save_only_model": True}, "save_only_model true"),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, "save_strategy best without metric_for_best_model"),
        (BEST | {"metric_for_best_model": "acuracy"}, "metric_for_best_model is 'acuracy'"),
        ({"ignore_data_skip": True}, "ignore_data_skip true"),
        ({"restore_callback_states_from_checkpoint": True}, "restore_callback_states_from_checkpoint true"),
    ],
)
def test_what_would_make_a_run_inexact_or_unscored_is_refused(arguments, changes, name):
    with pytest.raises(UserError, match=f"^{name}: ") as error:
        run(*arguments(**changes))
    assert "\n" not in str(error.value)


def test_a_run_scores_every_example_whatever_training_drops(arguments):
    record = run(*arguments(dataloader_drop_last=True, per_device_eval_batch_size=4, baseline=False))
    assert record.metrics["student"]["total"] == record.metrics["teacher"]["total"] == 10


@pytest.mark.slow
def test_a_repeated_run_says_what_made_its_student(arguments, tmp_path):
    made = run(*arguments(), "small")
    path = tmp_path / "out" / "student" / "finished.json"
    finished = read_json(path)
    finished["provenance"]["commit"] = "of an earlier version"
    write_json(path, finished)
    again = run(*arguments(), "small")
    assert again.commit == "of an earlier version" and again.created == finished["provenance"]["created"]
    assert again.metrics == made.metrics


@pytest.mark.slow
def test_every_file_of_a_saved_model_is_checked_whatever_its_name(arguments, tmp_path, monkeypatch, capsys):
    vocabulary = {"vocab.txt": "[PAD]", "merges.txt": "a b", "spiece.model": "binary", "templates/chat.jinja": "hello"}
    save = tiny_tokenizer.save_pretrained  # a tokenizer of Python writes such files

    def with_vocabulary(self, folder, *args, **kwargs):
        for name, text in vocabulary.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(text)
        return save(self, folder, *args, **kwargs)

    monkeypatch.setattr(tiny_tokenizer, "save_pretrained", with_vocabulary)
    steps = {"save_strategy": "steps", "save_steps": 1, "baseline": False}
    made = run(*arguments(**steps))
    folder = tmp_path / "out" / "student"
    checked = {*read_json(folder / "finished.json")["files"]}
    assert checked == {"model.safetensors", "config.json", "itrd_state.safetensors", *vocabulary} | {
        path.name for path in folder.glob("*token*.json")
    }
    for name in vocabulary:
        (folder / name).write_text("changed")
        capsys.readouterr()
        assert run(*arguments(**steps)).metrics == made.metrics
        assert f"{name} is damaged" in capsys.readouterr().err and (folder / name).read_text() == vocabulary[name]


def test_how_the_best_checkpoint_is_found_is_part_of_a_run(arguments, tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1}
    run(*arguments(save_steps=1, metric_for_best_model="f1", **best))
    with pytest.raises(UserError, match="differs in greater_is_better"):
        run(*arguments(save_steps=1, metric_for_best_model="f1", greater_is_better=False, **best))


def test_another_run_is_refused_before_its_teacher_trains(arguments, tmp_path):
    run(*arguments())
    with pytest.raises(UserError, match="differs in learning_rate"):
        run(*arguments(learning_rate=1.0, teacher_training={"max_steps": 3}))
    assert len([path for path in (tmp_path / "teachers").iterdir() if path.name.startswith("bert")]) == 1


def test_a_teacher_is_not_chosen_by_the_student_s_metric(arguments):
    record = run(*arguments(save_strategy="best", eval_strategy="epoch", metric_for_best_model="f1", baseline=False))
    assert set(record.metrics) == {"teacher", "student"}


def test_the_student_s_mistakes_are_told_before_the_teacher_trains(arguments, tmp_path):
    mistakes = {"kdd": {"losses": {"kdd": {}}}, "layer_map": {"layer_map": [[9, 1]]}}
    mistakes["frist"] = {"student": {"layers": "frist:1"}}
    for message, changes in mistakes.items():
        with pytest.raises(UserError, match=message):
            run(*arguments(**changes))
    assert not (tmp_path / "teachers").exists()


def test_changed_data_or_tokenizer_is_another_run(arguments, tmp_path, tokenizer):
    def write(word):
        rows = [{"question": f"where {i}", "context": f"in the {word} house {i}", "answer": "house"} for i in range(9)]
        (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def again(*argv):
        data = str(tmp_path / "data.jsonl")
        return run(
            *arguments(*argv, task="squad", tokenizer=str(tmp_path / "t"), train_file=data, validation_file=data)
        )

    tokenizer.save_pretrained(tmp_path / "t")
    write("king")
    again()
    write("city")
    with pytest.raises(UserError, match="differs in .*training data"):
        again()
    assert len(list((tmp_path / "teachers").glob("bert-*"))) == 2
    again("--overwrite", "true")


def test_overwriting_removes_only_what_a_run_has_made(arguments, tmp_path):
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "out" / "student" / "thesis.txt").write_text("mine")
    run(*arguments("--overwrite", "true", baseline=False))
    assert (tmp_path / "out" / "student" / "thesis.txt").is_file()


def test_records_hold_what_decides_the_weights_and_no_secrets(arguments, tmp_path):
    run(*arguments("--hub_token", "hf_secret", baseline=False))
    for name in ("record.json", "plan.json"):
        assert "hf_secret" not in (tmp_path / "out" / name).read_text()
    arguments_ = Record.read(tmp_path / "out" / "record.json").arguments
    assert {"world_size", "bf16", "learning_rate", "per_device_train_batch_size", "seed"} <= set(arguments_)


def test_what_does_not_change_the_weights_may_change(arguments, tmp_path):
    run(*arguments(baseline=False))
    written = (tmp_path / "out" / "student" / "model.safetensors").stat().st_mtime_ns
    second = run(*arguments("--disable_tqdm", "false", "--logging_steps", "2", "--n_best", "5"))
    assert (tmp_path / "out" / "student" / "model.safetensors").stat().st_mtime_ns == written
    assert "baseline" in second.metrics


def test_two_processes_run_and_record_it(arguments, tmp_path):
    arguments(use_cpu=torch.cuda.is_available())
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "itrd_nlp.cli", "distill"]
    done = subprocess.run(
        [
            *(sys.executable, *command, str(tmp_path / "small.yaml"), "--output_dir", str(tmp_path / "two")),
            *("--shared_dir", str(tmp_path / "teachers")),
        ],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = Record.read(tmp_path / "two" / "record.json")
    assert record.arguments["world_size"] == 2 and record.metrics["student"]["total"] == 10


def test_stored_answers_give_the_scores_of_the_live_teacher(arguments, tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 2, "baseline": False, "pooling": "tokens", "bf16": False}
    live = run(*arguments("--output_dir", str(tmp_path / "a"), teacher_cache="off", **options))
    store = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_dtype": "float32"}
    stored = run(*arguments("--output_dir", str(tmp_path / "b"), **store, **options))
    assert list((tmp_path / "cache").glob("*/*/*.safetensors"))
    assert stored.metrics == live.metrics and stored.stored_teacher and not live.stored_teacher
    folders = [tmp_path / name / "student" for name in "ab"]
    a, b = [AutoModelForQuestionAnswering.from_pretrained(folder).state_dict() for folder in folders]
    assert all(torch.allclose(value, b[key], rtol=1e-3, atol=1e-3) for key, value in a.items())


def test_a_corrected_mistake_is_not_another_run(arguments):
    with pytest.raises(UserError, match="layer_map"):
        run(*arguments(layer_map=[[9, 1]], baseline=False))
    assert run(*arguments(baseline=False)).metrics["student"]


def test_a_folder_of_another_run_is_refused_unless_told_otherwise(arguments):
    run(*arguments())
    with pytest.raises(UserError, match="holds another run, which differs in learning_rate"):
        run(*arguments("--learning_rate", "1e-3"))
    assert run(*arguments("--learning_rate", "1e-3", "--overwrite", "true")).arguments["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"task": "sqad"}, "task 'sqad' is not known"),
        ({"teacher": None}, "no teacher: .*--teacher"),
        ({"teacher": "no/such/folder"}, "model 'no/such/folder' is neither a folder here"),
        ({"teacher_training": {"epochs": 1}}, "teacher_training: unknown key 'epochs'"),
        ({"student": {"layers": "frist:1"}}, "did you mean 'first'"),
        ({"student": {"hidden_sizes": 8}}, "did you mean 'hidden_size'"),
        ({"task": "squad", "tokenizer": None}, "expected a tokenizer too"),
        ({"train_file": "x.json"}, "task toy with 'x.json'"),
        ({"layer_map": [[9, 1]]}, "layer_map has the pair"),
        ({"losses": {"itrd": 2}}, "expected a mapping"),
        ({"losses": "itrd"}, "expected a mapping"),
        ({"losses": {"kd": {"temperature": "hot"}}}, "wrong type"),
        ({"teacher": {"hidden_size": 32}}, "model_type"),
        ({"teacher": {**CONFIG, "hiden_size": 32}}, "did you mean 'hidden_size'"),
        ({"teacher": {**CONFIG, "hidden_size": 30}}, "expected the config of a new model"),
        ({"teacher": {**CONFIG, "hidden_size": "x"}}, "expected the config of a new model"),
        ({"student": CONFIG, "losses": {"itrd": {}}, "task_weight": 0}, "nothing trains the student's head"),
        ({"student": {"seed": 3}}, "expected from, layers, init, vocabulary and config fields"),
        ({"teacher_training": {"eval_strategy": "sometimes"}}, "teacher_training: "),
        ({"teacher_config": "abc"}, "expected a mapping"),
        ({"max_train_samples": 0}, "expected 1 or more"),
        ({"max_length": 512}, "max_length 512"),
    ],
)
def test_wrong_input_is_one_line(arguments, changes, words):
    with pytest.raises(UserError, match=words) as error:
        run(*arguments(**changes))
    assert "\n" not in str(error.value)


def test_evaluating_a_model_without_a_head_is_refused(arguments, tmp_path, tokenizer):
    from transformers import BertModel

    BertModel(tiny.config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="has no head for task toy"):
        evaluate_saved(*arguments("--teacher", str(tmp_path / "bare")))
    with pytest.raises(UserError, match="no data"):
        evaluate_saved(*arguments("--teacher", str(tmp_path / "bare"), "--task", "squad"))
