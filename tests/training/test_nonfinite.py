"""The first number that is none stops the run and is named, or its step is skipped and counted."""

import copy
import functools
import math

import pytest
import torch
from accelerate import PartialState

import tiny
from forked import on_ranks
from itrd_nlp.losses import LOSSES
from itrd_nlp.losses.base import INDEX
from itrd_nlp.losses.kd import KDLoss
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.training.nonfinite import NonFiniteCallback
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.errors import UserError
from training.test_trainer import trainer, weights

pytestmark = pytest.mark.promise("numbers that are none")


class Breaks(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


@pytest.fixture
def breaking(monkeypatch):
    """Break KD's value, or its gradient, at some of its calls."""

    def use(calls, what):
        count, terms = [0], KDLoss.terms

        def broken(self, student, teacher, batch):
            count[0] += 1
            found = terms(self, student, teacher, batch)
            if count[0] in calls:
                found["kd"] = found["kd"] * torch.nan if what == "value" else Breaks.apply(found["kd"])
            return found

        monkeypatch.setattr(LOSSES["kd"], "terms", broken)

    return use


def test_a_term_is_named_with_its_step_and_examples(tmp_path, breaking):
    breaking([3], "value")
    with pytest.raises(UserError, match=r"^kd is nan in step 3 \(training examples \d+(, \d+){7}\): expected") as error:
        trainer(tmp_path, logging_steps=50).train()
    assert "\n" not in str(error.value)


def test_a_gradient_is_told_with_its_step(tmp_path, breaking):
    breaking([2], "gradient")
    with pytest.raises(UserError, match=r"^the gradient is not finite in step 2 \(training examples"):
        trainer(tmp_path, logging_steps=50).train()


def test_deepspeed_has_no_norm_after_an_overflow(tmp_path):
    guard, model = NonFiniteCallback(skip=False), torch.nn.Linear(2, 2)
    guard.watch({"kd": torch.tensor(1.0)}, {})
    guard.check(None, model, 1)
    guard.watch({"kd": torch.tensor(math.inf)}, {})
    with pytest.raises(UserError, match="^kd is inf in step 2: expected"):
        guard.check(None, model, 2)


def broken_on_one(folder):
    rank = PartialState(cpu=True).process_index
    guard, model = NonFiniteCallback(skip=True), torch.nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    guard.watch({"kd": torch.tensor(math.nan if rank else 1.0)}, {INDEX: torch.tensor([rank])})
    guard.check(math.nan, model, 1, scale=65536.0)
    return guard.skipped == 1 and model.weight.grad is None


def test_a_gradient_that_no_scale_of_fp16_makes_finite_is_told():
    guard, model = NonFiniteCallback(skip=False), torch.nn.Linear(2, 2)
    for step, scale in enumerate([65536.0, 1.0], 1):
        guard.watch({"kd": torch.tensor(1.0)}, {})
        assert guard.check(math.nan, model, step, scale)  # the scaler skips it, and halves the scale
    guard.watch({"kd": torch.tensor(1.0)}, {})
    with pytest.raises(UserError, match="^the gradient is not finite in step 3"):
        guard.check(math.nan, model, 3, 0.5)


def test_fp16_ranks_agree_on_what_is_broken(tmp_path, capsys):
    assert on_ranks(broken_on_one, tmp_path) == [True, True]
    assert "step 1 (training examples 0, 1)" in capsys.readouterr().err


def test_fine_tuning_is_watched_too(tmp_path):
    student = tiny.bert()
    with torch.no_grad():
        student.qa_outputs.weight.fill_(torch.nan)
    made = trainer(tmp_path, student=student)
    made.distils = False
    with pytest.raises(UserError, match="^loss is nan in step 1"):
        made.train()


@pytest.mark.parametrize("what", ["value", "gradient"])
@pytest.mark.parametrize("optimizer,clip", [("adamw_torch_fused", 1.0), ("sgd", 0.0)])
def test_a_skipped_step_leaves_weights_and_optimizer(tmp_path, breaking, what, optimizer, clip):
    breaking([2], what)
    made = trainer(tmp_path, nonfinite="skip", optim=optimizer, max_grad_norm=clip, max_steps=2)
    kept = []
    step = made.training_step

    def keep(*args, **kwargs):
        kept.append((weights(made), copy.deepcopy(made.optimizer.state_dict()["state"])))
        return step(*args, **kwargs)

    made.training_step = keep
    made.train()
    last = made.state.log_history[-1]
    assert made.nonfinite.skipped == last["skipped_steps"] == 1 and math.isfinite(last["train_loss"])
    before, state = kept[1]
    assert all(torch.equal(value, before[key]) for key, value in weights(made).items())
    now = made.optimizer.state_dict()["state"]
    assert all(torch.equal(torch.as_tensor(now[i][k]), torch.as_tensor(v)) for i in state for k, v in state[i].items())


@pytest.mark.parametrize("what", ["value", "gradient"])
@pytest.mark.parametrize("teacher", [True, False])
def test_logged_means_are_of_the_steps_that_were_taken(tmp_path, breaking, monkeypatch, what, teacher):
    """Each log has the mean over its steps without the skipped ones, and the terms sum to the loss."""
    losses = []  # of each step, measured outside

    def seen(self, model, inputs, *args, **kwargs):
        value = original(self, model, inputs, *args, **kwargs)
        losses.append(value.item())
        return value

    original = ITRDTrainer.compute_loss
    made = trainer(tmp_path, nonfinite="skip", max_steps=8, logging_steps=3)
    if teacher:
        breaking([1, 5, 7, 8], what)
    else:
        made.distils, forward = False, type(made.student).forward
        calls = []

        @functools.wraps(forward)  # whose parameters say what it takes
        def broken(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            calls.append(1)
            if len(calls) in (1, 5, 7, 8):
                output["loss"] = output["loss"] * torch.nan if what == "value" else Breaks.apply(output["loss"])
            return output

        monkeypatch.setattr(type(made.student), "forward", broken)
    monkeypatch.setattr(ITRDTrainer, "compute_loss", seen)
    result = made.train()
    logs = [log for log in made.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [3, 6]  # all steps after the sixth were skipped
    taken = [losses[i] for i in (1, 2, 3, 5)]
    assert logs[0]["loss"] == pytest.approx(sum(taken[:2]) / 2, rel=1e-5)
    assert logs[1]["loss"] == pytest.approx(sum(taken[2:]) / 2, rel=1e-5)
    if teacher:
        names = ("task", "itrd/correlation", "itrd/mutual_information", "kd")
        assert all(sum(log[name] for name in names) == pytest.approx(log["loss"], rel=1e-5) for log in logs)
    assert result.training_loss == result.metrics["train_loss"] == pytest.approx(sum(taken) / 4, rel=1e-5)


def test_a_term_that_has_no_gradient_is_looked_at(tmp_path, monkeypatch):
    """As of a batch without a token: its mean is NaN, and what reaches the weights is 0."""

    def empty(self, student, teacher, batch):
        return {"kd": next(iter(student.logits.values()))[:0].mean()}

    monkeypatch.setattr(LOSSES["kd"], "terms", empty)
    with pytest.raises(UserError, match=r"^kd is nan in step 1 \(training examples"):
        trainer(tmp_path, losses={"kd": {}}).train()


def silent_on_one(folder):
    rank = PartialState(cpu=True).process_index
    guard, model = NonFiniteCallback(skip=True), torch.nn.Linear(2, 2)
    guard.watch({"kd": torch.tensor(math.nan if rank else 1.0)}, {})
    return not guard.check(1.0, model, 1) and guard.skipped == 1


def test_ranks_agree_on_a_term_that_has_no_gradient(tmp_path):
    assert on_ranks(silent_on_one, tmp_path) == [True, True]


def test_what_was_skipped_is_counted_on_after_resuming(tmp_path, breaking):
    options = {"nonfinite": "skip", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    breaking([2, 5], "value")
    whole = trainer(tmp_path, **options)
    whole.train()
    breaking([1], "value")  # the fifth
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert whole.nonfinite.skipped == again.nonfinite.skipped == 2
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(again).items())


def test_the_count_goes_on_in_a_callback_that_trainer_restores(tmp_path, breaking):
    breaking([2, 7], "value")
    options = {"nonfinite": "skip", "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    trainer(tmp_path, **options, max_steps=3).train()
    resumed = trainer(tmp_path, **options, max_steps=9, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=True)
    (callback,) = [each for each in resumed.callback_handler.callbacks if isinstance(each, NonFiniteCallback)]
    assert resumed.nonfinite is callback and callback.skipped == 2
    assert resumed.state.log_history[-1]["skipped_steps"] == 2


def test_running_statistics_that_took_it_up_stop_the_run(tmp_path, breaking):
    made = trainer(tmp_path, nonfinite="skip")
    breaking([2], "value")
    norm = made.student.normalisation = torch.nn.BatchNorm1d(4)
    step = made.training_step

    def poison(*args, **kwargs):
        if made.state.global_step == 1:
            norm.running_mean[0] = torch.nan
        return step(*args, **kwargs)

    made.training_step = poison
    with pytest.raises(UserError, match=r"step 2 .* cannot be skipped: student.normalisation has taken up values"):
        made.train()


def test_a_memory_bank_does_not_take_up_what_is_no_number():
    torch.manual_seed(0)
    bank = MemoryBank(6, 4, negatives=3, temperature=0.1, momentum=0.5)
    before = bank.student.clone()
    new = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    bank(new, new, torch.tensor([0, 1]))
    bank(new * torch.nan, new, torch.tensor([2, 3]))
    assert bank.student.isfinite().all() and torch.equal(bank.student[2:4], before[2:4])


def test_another_word_is_refused(tmp_path):
    with pytest.raises(UserError, match="nonfinite is 'ignore': expected one of"):
        trainer(tmp_path, nonfinite="ignore")
