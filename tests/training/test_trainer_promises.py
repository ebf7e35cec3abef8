"""The same arguments through transformers.Trainer and ITRDTrainer: what is promised to be as in Trainer, is.

The loss that distils is always 0 here, so that the student must become what fine-tuning makes of it, bit by bit.
"""

import copy
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import tiny
from forked import run_code
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.losses import LOSSES, DistillationLoss
from itrd_nlp.training.checkpoint import MARKER, SIDECAR
from itrd_nlp.utils.errors import UserError

OURS = {MARKER, SIDECAR}  # files that ITRDTrainer adds to a checkpoint
LEFT = {"training_args.bin"}  # and leaves out: a pickle, with tokens in it
CLOCKS = ("runtime", "_per_second", "_mem_")  # parts of the keys of logs that are measured
EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]
SHOWN = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
BASE = {
    **{"num_train_epochs": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 1e-3},
    **{"logging_steps": 1, "save_strategy": "no", "train_sampling_strategy": "random", "bf16": False, "use_cpu": True},
    **{"disable_tqdm": True, "report_to": "none", "losses": {"nothing": {}}, "teacher_cache": "off"},
}
STEPS = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 3}

CASES = {
    "defaults": {},
    **{f"optim {name}": {"optim": name} for name in ("adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad")},
    "optim_args": {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True"},
    "betas": {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "weight_decay": 0.1},
    **{
        f"schedule {name}": {"lr_scheduler_type": name, "warmup_steps": 3}
        for name in ("cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts")
    },
    "schedule kwargs": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    "warmup share": {"warmup_steps": 0.3},
    "no clipping": {"max_grad_norm": 0},
    "clipping": {"max_grad_norm": 0.01},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, uneven": {"gradient_accumulation_steps": 3},
    "max_steps": {"max_steps": 7},
    "part of an epoch": {"num_train_epochs": 1.5},
    "batch": {"per_device_train_batch_size": 3},
    "dropped batch": {"per_device_train_batch_size": 3, "dataloader_drop_last": True, **EVALUATES},
    "workers": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
    "log by 3": {"logging_steps": 3, "logging_first_step": True},
    "log shares": {"logging_steps": 0.25},
    "log by epoch": {"logging_strategy": "epoch"},
    "no logs": {"logging_strategy": "no"},
    "tokens seen": {"include_num_input_tokens_seen": "all"},
    "real tokens seen": {"include_num_input_tokens_seen": "non_padding"},
    "memory": {"skip_memory_metrics": False, "torch_empty_cache_steps": 2},
    "evaluate by epoch": {"eval_strategy": "epoch"},
    "evaluate by steps": EVALUATES,
    "evaluate later": {**EVALUATES, "eval_delay": 4},
    "evaluate first": {**EVALUATES, "eval_on_start": True},
    "evaluate in pieces": {**EVALUATES, "eval_accumulation_steps": 1, "per_device_eval_batch_size": 3},
    "evaluate batch by batch": {**EVALUATES, "batch_eval_metrics": True},
    "evaluate unjoined": {**EVALUATES, "eval_do_concat_batches": False},
    "evaluate with inputs": {**EVALUATES, "include_for_metrics": ["inputs", "loss"]},
    "loss only": {**EVALUATES, "prediction_loss_only": True},
    "save by steps": SAVES,
    "save shares": {**SAVES, "save_steps": 0.3},
    "save by epoch": {"save_strategy": "epoch", "save_total_limit": 1},
    "keep one": {**SAVES, "save_total_limit": 1},
    "keep two": {**SAVES, "save_total_limit": 2},
    "model only": {**SAVES, "save_only_model": True},
    "best": {**STEPS, "load_best_model_at_end": True, "save_total_limit": 1},
    "best, two kept": {**STEPS, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
    "save the best": {**STEPS, "save_strategy": "best", "metric_for_best_model": "accuracy"},
    "early stopping": {**STEPS, "load_best_model_at_end": True, "learning_rate": 0.3},
    "in order": {"train_sampling_strategy": "sequential"},
    "balanced": {"train_sampling_strategy": "batch_rebalance"},
    "seeds": {"seed": 3, "data_seed": 7},
    "label_names": {"label_names": ["labels"]},
    "all columns": {"remove_unused_columns": False},
    "neftune": {"neftune_noise_alpha": 5.0},
    "recomputed": {"activation_checkpointing": True},
    "half": {"bf16": True},
    "averaged": {"average_tokens_across_devices": False},
    "stored": {"teacher_cache": "FOLDER"},
    "even": {"accelerator_config": {"even_batches": False, "use_seedable_sampler": False}},
}
RESUMED = ["defaults", "accumulation", "balanced", "schedule cosine", "seeds", "in order", "neftune", "best"]
EXPECTED = {  # where ours differs and says so: docs/guides/trainer.md
    "dropped batch": {"logs", "callbacks"},  # it evaluates every example all the same
}
DRAWN = sorted(random.Random(5).sample([*CASES], 5))


class Nothing(DistillationLoss):
    """A loss that is 0 and reads the logits."""

    reads_features = False

    def __init__(self, shapes):
        super().__init__([])

    def terms(self, student, teacher, batch):
        return {"nothing": torch.zeros(())}


class Recorder(TrainerCallback):
    """What Trainer calls, where it stands, and what it will do."""

    def __init__(self):
        self.seen = []


def _records(event):
    def record(self, args, state, control, **kwargs):
        self.seen.append((event, state.global_step, state.epoch, *[getattr(control, name) for name in SHOWN]))

    return record


for each in EVENTS:
    setattr(Recorder, each, _records(each))


class Divides(Trainer):
    """Trainer, which divides by the accumulated batches; it would leave that to BERT, which does not do it."""

    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def student():
    return tiny.bert("classes", layers=1, seed=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def accuracy(prediction, compute_result=True):
    """Of one batch, or all; batches that were not joined are joined here."""
    logits, labels = prediction.predictions, prediction.label_ids
    if isinstance(logits, list):
        logits, labels = np.concatenate(logits), np.concatenate(labels)
    if prediction.inputs is not None:
        assert len(prediction.inputs) == len(labels)
    return {"accuracy": float((np.asarray(logits).argmax(-1) == np.asarray(labels)).mean()), "n": len(labels)}


def made(kind, folder, options):
    options = {**BASE, **options}
    own = {name: options.pop(name) for name in ("compute_metrics", "eval_dataset") if name in options}
    if options["teacher_cache"] == "FOLDER":
        options["teacher_cache"] = str(folder.parent / "cache")
    data = tiny.rows(19, "classes")
    if not options.get("remove_unused_columns", True):
        data = data.remove_columns(["special_tokens_mask", "length"])
    recorder = Recorder()
    common = {
        "args": ITRDArguments(str(folder), **options),
        "train_dataset": data,
        "eval_dataset": tiny.rows(10, "classes", seed=1),
        "data_collator": tiny.collate,
        "compute_metrics": accuracy,
        "callbacks": [recorder, *([EarlyStoppingCallback(2)] if options["learning_rate"] == 0.3 else [])],
        **own,
    }
    if kind == "ours":
        return ITRDTrainer(model=student(), teacher_model=tiny.bert("classes", layers=2), **common), recorder
    if kind == "ours, no teacher":
        return ITRDTrainer(model=student(), **common), recorder
    return Divides(model=student(), **common), recorder


def measured(key):
    return any(part in key for part in CLOCKS)


def logs(trainer, rest):
    """Its logs without what is measured, ours without the terms; and without what ours logs of the steps at the end."""
    kept = [{k: v for k, v in log.items() if not measured(k) and k not in rest} for log in trainer.state.log_history]
    return [log for log in kept if "loss" not in log or "learning_rate" in log]


def keys(trainer, rest):
    return [sorted(set(log) - rest) for log in trainer.state.log_history if "loss" not in log or "learning_rate" in log]


def files(folder):
    """The checkpoints of a folder and the files in them."""
    found = {path.name: {file.name for file in path.iterdir()} for path in folder.glob("checkpoint-*")}
    return {name: names - OURS - LEFT for name, names in found.items()}


def differences(folder, options, kind="ours", resume=None):
    """In what the two differ: weights, logs, keys of logs, checkpoints, callbacks, what is returned."""
    ends = []
    for each in (kind, "theirs"):
        trainer, recorder = made(each, folder / each, options)
        if resume is not None:
            trainer.train()
            trainer, recorder = made(each, folder / each, options)
        output = trainer.train(resume_from_checkpoint=resume and str(folder / each / resume))
        model = trainer.student if isinstance(trainer, ITRDTrainer) else trainer.model
        ends.append((trainer, recorder, output, model.state_dict()))
    (ours, called, output, weights), (theirs, their_calls, their_output, their_weights) = ends
    rest = {"task", "nothing"} if kind == "ours" else set()
    logged = [event for event in called.seen if event[0] != "on_log"], [e for e in their_calls.seen if e[0] != "on_log"]
    same = {
        "weights": all(torch.equal(value, weights[key]) for key, value in their_weights.items()),
        "logs": repr(logs(ours, rest)) == repr(logs(theirs, set())),
        "keys": keys(ours, rest) == keys(theirs, set()),
        "checkpoints": files(folder / kind) == files(folder / "theirs"),
        "callbacks": logged[0] == logged[1],
        "result": (output.global_step, output.training_loss) == (their_output.global_step, their_output.training_loss),
        "keys of the result": sorted(output.metrics) == sorted(their_output.metrics),
    }
    return {name for name, equal in same.items() if not equal}


@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    monkeypatch.setitem(LOSSES, "nothing", Nothing)


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_part_is_as_in_trainer(tmp_path, name):
    assert differences(tmp_path, CASES[name]) == EXPECTED.get(name, set())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "ours, no teacher"])
@pytest.mark.parametrize("name", CASES)
def test_every_argument_is_as_in_trainer(tmp_path, name, kind):
    assert differences(tmp_path, CASES[name], kind) == EXPECTED.get(name, set())


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5])  # inside an epoch of 5 steps, and at its end
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_is_as_in_trainer(tmp_path, name, step):
    every = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    if "eval_strategy" in CASES[name]:
        every["eval_steps"] = 1
    step = min(step, 4) if name == "accumulation" else step
    assert differences(tmp_path, {**CASES[name], **every}, resume=f"checkpoint-{step}") == set()


FAILING = {
    "debug": {"debug": "underflow_overflow"},  # of a mask, which is Boolean
    "metric": {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "nothing"},
    "compute_result": {**EVALUATES, "batch_eval_metrics": True, "compute_metrics": lambda prediction: {}},
    "no eval_dataset": {**EVALUATES, "eval_dataset": None},
    "no metric": {"save_strategy": "best"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_what_trainer_does_not_do_ends_as_in_trainer(tmp_path, name):
    ends = []
    for kind in ("ours", "theirs"):
        with pytest.raises(Exception) as error:  # noqa: B017
            made(kind, tmp_path / kind, FAILING[name])[0].train()
        ends.append((error.type, str(error.value)))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_arguments_together_are_as_in_trainer(tmp_path, seed):
    draw = random.Random(seed)
    names = draw.sample([name for name in CASES if name not in ("early stopping", "all columns", "dropped batch")], 3)
    options = {}
    for name in names:
        options |= CASES[name]
    if options.get("load_best_model_at_end") and options["save_strategy"] != "best":
        options |= STEPS
    try:
        ITRDArguments(str(tmp_path), **{**BASE, **options})
    except ValueError:
        pytest.skip(f"Trainer refuses {names} together")
    assert differences(tmp_path, options) == set(), names


@pytest.mark.slow
def test_grouped_by_length_logs_saves_and_calls_as_trainer_in_an_order_of_its_own(tmp_path):
    options = {**STEPS, "train_sampling_strategy": "group_by_length"}
    assert differences(tmp_path, options) <= {"weights", "logs", "result"}


def test_checkpoints_of_an_earlier_training_stay_as_with_trainer(tmp_path):
    """Started from scratch in a folder that is used, with fewer steps than before."""
    for kind in ("ours", "theirs"):
        for options in ({**SAVES, "max_steps": 6}, {**SAVES, "max_steps": 3}):
            made(kind, tmp_path / kind, options)[0].train()
    names = [{path.name for path in (tmp_path / kind).glob("checkpoint-*")} for kind in ("ours", "theirs")]
    assert names[0] == names[1] >= {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


def test_the_last_checkpoint_stays_whatever_is_numbered_higher(tmp_path):
    made("ours", tmp_path, {**SAVES, "max_steps": 6})[0].train()
    made("ours", tmp_path, {**SAVES, "max_steps": 2, "save_total_limit": 1})[0].train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize(
    "options,words",
    [
        ({"compute_loss_func": lambda *args, **kwargs: 0.0}, "^compute_loss_func: "),
        ({"model_init": student}, "^model_init: "),
        ({"model": torch.nn.Linear(2, 2)}, "^Linear: expected a PreTrainedModel"),
        ({"model": None}, "^NoneType: expected a PreTrainedModel"),
    ],
)
def test_what_the_constructor_cannot_honour_is_refused_by_name(tmp_path, options, words):
    common = {
        "model": student(),
        "args": ITRDArguments(str(tmp_path), **BASE),
        "train_dataset": tiny.rows(8, "classes"),
    }
    with pytest.raises(UserError, match=words) as error:
        ITRDTrainer(**{**common, "data_collator": tiny.collate, **options})
    assert "\n" not in str(error.value)


def test_other_arguments_are_refused_by_their_class(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(UserError, match="^args is TrainingArguments: expected ITRDArguments"):
        ITRDTrainer(model=student(), args=TrainingArguments(str(tmp_path)), train_dataset=tiny.rows(8, "classes"))


@pytest.mark.parametrize("build", ["optimizers", "optimizer_cls_and_kwargs"])
def test_optimizers_of_the_users_own(tmp_path, build):
    """As with Trainer where nothing else is trained; one that leaves out projectors is refused."""
    ends = {}
    for kind in ("ours", "theirs"):
        model, args = student(), ITRDArguments(str(tmp_path / kind), **BASE)
        own = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
        if build == "optimizers":
            own = {build: (torch.optim.SGD(model.parameters(), lr=0.1), None)}
        common = {"model": model, "args": args, "train_dataset": tiny.rows(8, "classes"), "data_collator": tiny.collate}
        teacher = {"teacher_model": tiny.bert("classes", layers=2)}
        trainer = ITRDTrainer(**common, **teacher, **own) if kind == "ours" else Divides(**common, **own)
        trainer.train()
        ends = model.state_dict() if kind == "ours" else ends
    assert all(torch.equal(value, ends[key]) for key, value in model.state_dict().items())
    model = student()
    args = ITRDArguments(str(tmp_path / "itrd"), **{**BASE, "losses": {"itrd": {}}})
    options = {"train_dataset": tiny.rows(8, "classes"), "data_collator": tiny.collate, "args": args, **teacher}
    if build == "optimizers":
        with pytest.raises(UserError, match=r"^optimizers: the losses train \d+ tensors that it does not hold"):
            ITRDTrainer(model=model, **options, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
        return
    trainer = ITRDTrainer(model=model, **options, **own)
    before = copy.deepcopy(trainer.model.losses.state_dict())
    trainer.train()
    assert not any(torch.equal(value, before[key]) for key, value in trainer.model.losses.state_dict().items())


SIGNALLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import os, signal, pytest
import training.test_trainer_promises as promises
from transformers import TrainerCallback
promises.LOSSES["nothing"] = promises.Nothing

class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            {end}

trainer, _ = promises.made({kind!r}, Path({folder!r}), {{}})
trainer.add_callback(Ends())
trainer.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGTERM)", "raise SystemExit(7)", "1 / 0", "pass"])
def test_a_script_ends_with_the_exit_code_that_it_has_with_trainer(tmp_path, end):
    codes = []
    for kind in ("ours", "theirs"):
        text = SIGNALLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / kind), kind=kind, end=end)
        codes.append(run_code(text).returncode)
    assert codes[0] == codes[1] == {"raise SystemExit(7)": 7, "1 / 0": 1, "pass": 0}.get(end, -15)


@pytest.mark.slow
def test_a_script_with_workers_ends_with_its_error(tmp_path):
    places = {"tests": str(Path(__file__).parents[1]), "folder": str(tmp_path), "kind": "ours", "end": "1 / 0"}
    text = SIGNALLED.format(**places).replace("{}", '{"dataloader_num_workers": 2}')
    done = subprocess.run([sys.executable, "-c", text], timeout=120, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_flops_and_tokens_are_those_of_the_student(tmp_path):
    trainer, _ = made("ours", tmp_path, {"include_num_input_tokens_seen": "all", "max_steps": 1})
    output = trainer.train()
    batch = trainer.state.num_input_tokens_seen
    assert batch and trainer.state.total_flos == 6 * batch * trainer.student.num_parameters(exclude_embeddings=True)
    assert math.isfinite(output.training_loss)
