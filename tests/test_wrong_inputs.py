"""Every mistake of a user is one line on stderr and exit code 2, wherever in the thirteen commands it is met."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertForQuestionAnswering, BertForSequenceClassification, BertModel

import tiny
from experiments.test_run import SMALL
from itrd_nlp.cli.commands import COMMANDS
from itrd_nlp.cli.main import main
from itrd_nlp.losses import LOSSES, ITRDLoss
from itrd_nlp.utils.errors import UserError

TOY = "distill small.yaml --output_dir out --shared_dir shared --teacher_cache off"
SHRINK = "shrink qa --train_file questions.json --validation_file questions.json --output_dir shrunk"
# command line -> part of the message; most are refused before anything is loaded
FAST = {
    # what is not a command, and what a command's own parser refuses
    "distil toy/t1-itrd": "did you mean 'distill'",
    "--colour": "expected `itrd COMMAND ...`",
    "": "expected `itrd COMMAND ...`",
    "predict": "the following arguments are required: model",
    "predict qa --files rows.csv": "did you mean 'file'",
    "predict qa --n_best many --question a --context b": "invalid int value: 'many'",
    "predict qa --null_threshold low --question a --context b": "invalid float value: 'low'",
    "demo --student qa --port http": "invalid int value: 'http'",
    "demo --port 80": "the following arguments are required: --student",
    "completion fish": "invalid choice: 'fish'",
    "report": "the following arguments are required: records",
    "report record.json --format pdf": "invalid choice: 'pdf'",
    "score --data rows.csv": "the following arguments are required: --predictions",
    "compare toy/t1-itrd --seeds one": "invalid int value: 'one'",
    "sweep toy/t1-itrd": "the following arguments are required: --grid",
    "benchmark qa --lengths long": "invalid int value: 'long'",
    "evaluate --validation_file rows.csv": "expected `itrd evaluate MODEL",
    "export --output out": "expected `itrd export MODEL",
    "recipes nowhere": "no recipe's name holds 'nowhere'",
    # recipes
    "distill toy/t1_itrd": "did you mean 'toy/t1-itrd'",
    "distill folder": "is a folder",
    "distill latin.yaml": "not UTF-8",
    "distill broken.yaml": "not readable as YAML",
    "distill tab.yaml": "a tab",
    "distill twice.yaml": "the key 'seed' twice",
    "distill twice-inside.yaml": "the key 'alpha' twice",
    "distill list.yaml": "expected `key: value` lines",
    "distill odd-key.yaml": "did you mean 'max_length'",
    "distill loop.yaml": "is its own base",
    "compare small.yaml small.yaml": "two recipes have the name",
    "compare small.yaml --against KD": "--against 'KD': expected one of",
    "sweep small.yaml --grid learning_rate": "expected an argument and its values",
    "sweep small.yaml --grid learning_rate=fast": "invalid float value: 'fast'",
    # arguments of a run
    f"{TOY} --optim adamm": "'adamm'",
    f"{TOY} --lr_scheduler_type steps": "'steps'",
    f"{TOY} --eval_strategy never": "'never'",
    f"{TOY} --fsdp foo": "foo",
    f"{TOY} --deepspeed missing.json": "deepspeed",
    f"{TOY} --report_to foo": "foo",
    f"{TOY} --learning_rate fast": "invalid float value: 'fast'",
    f"{TOY} --learning_rate": "expected one argument",
    f"{TOY} --learning_rate -1": "learning_rate",
    f"{TOY} --learning_rate nan": "learning_rate",
    f"{TOY} --weight_decay -1": "weight_decay",
    f"{TOY} --adam_beta1 2": "adam_beta1",
    f"{TOY} --adam_epsilon -1": "adam_epsilon",
    f"{TOY} --max_grad_norm nan": "max_grad_norm",
    f"{TOY} --warmup_steps -1": "warmup_steps",
    f"{TOY} --num_train_epochs nan": "num_train_epochs",
    f"{TOY} --seed -1": "seed",
    f"{TOY} --seed 99999999999": "seed",
    f"{TOY} --dataloader_num_workers -1": "dataloader_num_workers",
    f"{TOY} --bf16 maybe": "maybe",
    f"{TOY} --max_seq_length 64": "did you mean 'max_length'",
    f"{TOY} --alpha 2": "did you mean 'losses.itrd.alpha'",
    f"{TOY} --temperature 2": "did you mean 'losses.kd.temperature'",
    f"{TOY} --epochs 3": "did you mean 'num_train_epochs'",
    f"{TOY} --batch-size 3": "did you mean 'per_device_train_batch_size'",
    f"{TOY} --losses {{itrd": "expected a YAML value",
    f"{TOY} --losses.kd.temperature": "has no value",
    f"{TOY} --teacher_training [1]": "expected a mapping",
    f"{TOY} --lr_scheduler_kwargs {{": "is not JSON",
    f"{TOY} --gradient_checkpointing_kwargs maybe": "gradient_checkpointing_kwargs",
    f"{TOY} --task squat": "did you mean 'squad'",
    f"{TOY} --overwrite perhaps": "perhaps",
    f"{TOY} --max_train_samples 0": "max_train_samples is 0",
    # files
    "score --predictions folder --data rows.csv": "folder",
    "score --predictions latin.json --data questions.json": "UTF-8",
    "score --predictions questions.json --data questions.json": "expected a JSON object",
    "score --predictions answers.json --data missing.json": "does not exist",
    "score --predictions answers.json --data folder": "folder",
    "score --predictions answers.json --data latin.csv": "UTF-8",
    "report missing.json": "no such file",
    "cache missing": "no such folder; expected one that --teacher_cache named",
    "report folder": "folder",
    "report broken.json": "not JSON",
    "report latin.json": "UTF-8",
    "report empty-record.json": "it has no metrics",
    "report answers.json": "not a record of a run",
    "report record.json --write missing.md": "no such file",
    "report record.json --write latin.md": "UTF-8",
    "report record.json --output folder": "is a folder",
    "report record.json --output missing/report.md": "there is no folder missing",
    "benchmark qa --plot speed.png": "ends in .svg or .html",
    "benchmark qa --output missing/speed.json": "there is no folder missing",
    "benchmark qa --output folder": "is a folder",
    "benchmark qa --lengths 0": "expected 1 or more",
    "benchmark qa --repeats 1": "expected 2 or more",
    "predict qa --file missing.csv": "does not exist",
    "predict qa --file folder": "folder",
    "predict qa --file latin.csv": "UTF-8",
    "predict qa --file questions.json --output folder": "is a folder",
    "predict qa --file questions.json --output missing/a.json": "there is no folder missing",
    "predict qa --question who": "expected either",
    "predict missing --text a": "missing",
    "predict broken-config --text a": "broken-config",
    "predict no-weights --text a": "no-weights",
    "demo --student qa --examples missing.json": "does not exist",
    "demo --student missing --port 0": "missing",
    "evaluate qa": "no data",
    "evaluate qa --validation_file latin.csv": "UTF-8",
    "evaluate broken-config --validation_file questions.json": "broken-config",
    "export qa --output folder": "there is something else",
    "shrink": "the following arguments are required: model, --train_file, --validation_file",
    f"{SHRINK} --keep 1.2": "--keep 1.2: expected a share of the teacher's score",
    f"{SHRINK} --max_mib 0": "--max_mib 0: expected a number above 0",
    f"{SHRINK} --layers 9": "--layers 9: expected 1 to",
    f"{SHRINK} --task squat": "did you mean 'squad'",
    f"{SHRINK} --student.layers first:2": "the search decides it",
    f"{SHRINK} --keeps 0.9": "keep",
    "shrink missing --train_file questions.json --validation_file questions.json": "no model in 'missing'",
    "export qa --output answers.json/out": "answers.json",
    "export qa --seed 1": "it is about evaluating",
    "export qa --tokenizer other": "--tokenizer: qa is measured with its own",
    "export qa --output qa.onnx": "expected the name of a folder, which does not end in .onnx",
    "doctor --folder here": "unrecognized arguments",
}
# what needs a model, or a training
SLOW = {
    "export missing --output out": "no model in 'missing'",
    "evaluate missing --validation_file questions.json": "missing",
    "predict qa --text a": "ForQuestionAnswering: expected a model for",
    "predict bare --question a --context b": "no question-answering head",
    "predict corrupt --question a --context b": "corrupt",
    "predict corrupt --text a": "corrupt",
    "predict classes --file questions.json": "expected",
    "predict classes --file numbers.jsonl": "expected text",
    "predict qa --question a --context b --max_length 9999": "9999",
    "predict qa --question a --context b --doc_stride 9999": "doc_stride 9999",
    "predict qa --question a --context b --n_best 0": "n_best",
    "predict qa --question a --context b --max_answer_length 0": "max_answer_length",
    "demo --student bare --port 0": "no question-answering head",
    "demo --student qa --port 99999": "--port 99999",
    "evaluate qa --validation_file questions.json --max_length 9999": "9999",
    "evaluate corrupt --validation_file questions.json": "corrupt",
    "evaluate bare --task squad --validation_file questions.json": "no head for task squad",
    "evaluate qa --validation_file questions.json --n_best 0": "n_best",
    "export bare-named --output out": "expected a trained model",
    "export corrupt --output out": "corrupt",
    "benchmark qa --lengths 9999": "9999",
    "benchmark corrupt": "corrupt",
    f"{TOY} --pooling foo": "foo",
    f"{TOY} --layer_map first": "layer_map",
    f"{TOY} --losses.itrt.alpha 1": "did you mean 'itrd'",
    f"{TOY} --losses.kd.temperature hot": "temperature",
    f"{TOY} --losses.kd.temperature 0": "temperature",
    f"{TOY} --losses.itrd.alpha -1": "alpha",
    f"{TOY} --student.layers first:9": "layers",
    f"{TOY} --attn_implementation foo": "foo",
    f"{TOY} --lr_scheduler_type cosine_with_min_lr": "lr_scheduler",
    f"{TOY} --optim_args nonsense": "optim_args",
    f"{TOY} --output_dir answers.json/out": "answers.json",
    f"{TOY} --shared_dir answers.json/out": "answers.json",
    f"{TOY} --resume_from_checkpoint missing": "a run continues by itself",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with good and bad files of every kind."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "folder").mkdir()
    texts = {
        "small.yaml": json.dumps(SMALL),
        "broken.yaml": "losses: {itrd: {",
        "tab.yaml": "losses:\n\titrd: {}\n",
        "twice.yaml": "seed: 1\ntask: toy\nseed: 2\n",
        "twice-inside.yaml": "losses: {itrd: {alpha: 1.5, alpha: 2}}\n",
        "list.yaml": "- task: toy\n",
        "odd-key.yaml": "max_seq_length: 64\n",
        "loop.yaml": "base: loop.yaml\n",
        "broken.json": "{",
        "answers.json": json.dumps({"a": "king"}),
        "questions.json": json.dumps([{"id": "a", "question": "who", "context": "the king", "answers": []}]),
        "numbers.jsonl": '{"text": 3}\n',
        "rows.csv": "text,label\nthe king,yes\n",
        "record.json": (Path(__file__).parents[1] / "scripts/results/toy-t1-itrd.json").read_text(),
        "empty-record.json": json.dumps({"recipe": "r", "arguments": {}, "seed": 1}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name in ("latin.yaml", "latin.json", "latin.csv", "latin.md"):
        (folder / name).write_bytes('question,context,answer,"é"\n'.encode("latin-1"))
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    kinds = {"qa": BertForQuestionAnswering, "classes": BertForSequenceClassification, "bare": BertModel}
    for name in ("qa", "classes", "bare", "broken-config", "no-weights", "corrupt", "bare-named"):
        kinds.get(name, BertForQuestionAnswering)(tiny.config(layers=1, **options)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "broken-config" / "config.json").write_text("{")
    (folder / "no-weights" / "model.safetensors").unlink()
    (folder / "corrupt" / "model.safetensors").write_bytes(b"\xff" * 100)
    BertModel(tiny.config(layers=1, **options)).save_pretrained(folder / "bare-named")
    config = (folder / "bare-named" / "config.json").read_text()
    (folder / "bare-named" / "config.json").write_text(config.replace("BertModel", "BertForQuestionAnswering"))
    return folder


def told(capsys, argv):
    """The one line that a command refuses its arguments with."""
    capsys.readouterr()
    code = main(argv)
    *lines, error = capsys.readouterr().err.splitlines(keepends=True)
    assert code == 2 and error.startswith("itrd: error: ") and len(error) < 700, error
    assert all(line.startswith("[") for line in lines), lines  # what was read before it was refused
    return error


def test_there_are_cases_of_every_command():
    named = {line.split()[0] for line in (*FAST, *SLOW) if line}
    assert {*COMMANDS} <= named and len(FAST) + len(SLOW) > 100


@pytest.mark.promise("wrong inputs")
@pytest.mark.parametrize("line", [*FAST, *(pytest.param(line, marks=pytest.mark.slow) for line in SLOW)], ids=str)
def test_wrong_input(place, tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(place)
    words = [str(tmp_path / word) if word in ("out", "shared") else word for word in shlex.split(line)]
    assert (FAST | SLOW)[line].lower() in told(capsys, words).lower()


def test_a_fault_of_ours_is_a_traceback(place, monkeypatch):
    monkeypatch.chdir(place)
    for error in (ValueError("shapes"), OSError("gone"), KeyError("x"), RuntimeError("y"), TypeError("z")):

        def run(args, rest, error=error):
            raise error

        monkeypatch.setitem(COMMANDS, "recipes", COMMANDS["recipes"]._replace(run=run))
        with pytest.raises(type(error)):
            main(["recipes"])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        *(pytest.param(error, marks=pytest.mark.slow) for error in (OSError("mine"), KeyError("mine"))),
    ],
)
def test_an_error_of_a_user_s_own_loss_is_a_traceback(place, monkeypatch, tmp_path, error):
    class Mine(ITRDLoss):
        def terms(self, student, teacher, batch):
            raise error

    monkeypatch.chdir(place)
    monkeypatch.setitem(LOSSES, "mine", Mine)
    places = [f"--output_dir={tmp_path}/out", f"--shared_dir={tmp_path}/shared", "--teacher_cache=off"]
    with pytest.raises(type(error), match="mine"):
        main(["distill", "small.yaml", *places, "--losses", "{mine: {}}", "--baseline=false", "--latency=false"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whose rights count")
@pytest.mark.parametrize("line", ["distill secret.yaml", "score --predictions secret.json --data questions.json"])
def test_a_file_that_may_not_be_read(place, monkeypatch, capsys, line):
    monkeypatch.chdir(place)
    path = place / next(word for word in line.split() if word.startswith("secret"))
    path.write_text("{}")
    path.chmod(0)
    try:
        assert "ermission denied" in told(capsys, line.split())
    finally:
        path.unlink()


@pytest.mark.parametrize("name", ["onnxruntime", "onnx"])
def test_an_extra_that_is_missing(place, monkeypatch, capsys, name):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'itrd_nlp[export]'" in told(capsys, ["export", "qa", "--output", "out"])
    assert "pip install 'itrd_nlp[export]'" in told(capsys, SHRINK.split())


def test_a_user_error_of_several_lines_is_one(monkeypatch, capsys):
    def run(args, rest):
        raise UserError("one\n  two\r\nthree")

    monkeypatch.setitem(COMMANDS, "recipes", COMMANDS["recipes"]._replace(run=run))
    assert told(capsys, ["recipes"]) == "itrd: error: one two three\n"
