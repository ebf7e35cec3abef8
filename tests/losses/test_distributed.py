"""One batch on one process, or its parts on several that gather: the same loss, the same gradient."""

import pytest
import torch
from accelerate import PartialState
from packaging.version import Version
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import tiny
from forked import on_ranks
from itrd_nlp.distillation.distiller import build_distiller
from itrd_nlp.losses.base import INDEX
from itrd_nlp.losses.distributed import gather_samples
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_batches
from itrd_nlp.utils.errors import UserError
from training.test_trainer import trainer, weights

BATCH = 32


def one_step(folder, ranks, options, equal_length=False):
    """The loss of the first batch, and the gradient as a step of plain SGD shows it."""
    made = trainer(
        folder, teacher=tiny.bert(width=48), student=tiny.bert(layers=2, seed=3), max_steps=1, optim="sgd",
        learning_rate=1.0, max_grad_norm=0, lr_scheduler_type="constant", train_sampling_strategy="sequential",
        per_device_train_batch_size=BATCH // ranks, data=tiny.rows(BATCH, equal_length=equal_length), **options,
    )  # fmt: skip
    made.model.double(), made.teacher.double()  # so that equal means equal
    before = weights(made)
    made.train()
    if made.is_world_process_zero():
        gradient = {key: before[key] - value for key, value in weights(made).items() if value.is_floating_point()}
        torch.save(gradient, f"{folder}/{ranks}.pt")
    return made.state.log_history[0]


def step_on(folder, ranks, options, equal_length=False):
    """The gradient of the same step on so many processes, and the first one's log."""
    step = str(folder), ranks, options, equal_length
    log = one_step(*step) if ranks == 1 else on_ranks(one_step, *step, ranks=ranks)[0]
    return torch.load(folder / f"{ranks}.pt"), log


ALONE = {"task_weight": 0}  # the models' own loss depends on how far a batch is padded
CASES = {
    "itrd, mean": {"losses": {"itrd": {}}, **ALONE},
    "itrd, tokens": {"losses": {"itrd": {"mi_samples": 40}}, "pooling": "tokens", **ALONE},
    "srd": {"losses": {"srd": {}}, **ALONE},
    "wcord, local": {"losses": {"wcord": {"weight": 1e-12, "local_weight": 1.0}}, **ALONE},
}
DAILY = ("itrd, tokens", "srd")


@pytest.mark.promise("one batch on one process or on several")
@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in DAILY)) for c in CASES])
def test_parts_that_gather_give_the_whole_batch_s_loss_and_gradient(tmp_path, case):
    whole, log = step_on(tmp_path, 1, CASES[case])
    largest = max(value.abs().max() for value in whole.values())
    for ranks in (2, 4):
        parts, parts_log = step_on(tmp_path, ranks, {**CASES[case], "gather_across_ranks": True})
        assert parts_log["loss"] == pytest.approx(log["loss"], rel=1e-6)
        for key, value in whole.items():
            if "banks" not in key:
                torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-9 * float(largest), msg=key)


@pytest.mark.promise("one batch on one process or on several")
def test_with_gold_labels_and_kd_too(tmp_path):
    options = {"losses": {"itrd": {}, "kd": {}}, "gather_across_ranks": True}
    whole, log = step_on(tmp_path, 1, options, equal_length=True)
    parts, parts_log = step_on(tmp_path, 2, options, equal_length=True)
    assert parts_log["loss"] == pytest.approx(log["loss"], rel=1e-6)
    largest = max(value.abs().max() for value in whole.values())
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-9 * float(largest), msg=key)


def test_parts_that_do_not_gather_give_another(tmp_path):
    _, log = step_on(tmp_path, 1, CASES["itrd, mean"])
    _, parts_log = step_on(tmp_path, 4, CASES["itrd, mean"])
    assert abs(parts_log["itrd/correlation"] - log["itrd/correlation"]) > 1e-2


def sharded_step(folder, options):
    """On a rank of two: gradients of student and losses with their weights cut over the ranks, and whole."""
    PartialState(cpu=True)
    batch = tiny.collate(tiny.rows(8).to_list())
    teacher = tiny.bert(width=48).eval()
    gradients = []
    for shards in (False, True):
        made, reader = build_distiller(tiny.bert(layers=2, seed=3), teacher, batch, **options)
        with torch.no_grad():
            _, representation = reader(teacher, batch)
        if shards:
            mesh = init_device_mesh("cpu", (2,))
            for layer in made.student.bert.encoder.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(made, mesh=mesh)
        made(teacher=representation, **batch)["loss"].backward()
        each = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
        gradients.append({n: g.full_tensor() if shards else g for n, g in each.items()})
    whole, cut = gradients
    assert whole.keys() == cut.keys() and any(name.startswith("losses.") for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, msg=name)


def half_step(folder, losses):
    """On a rank of two: a step as accelerate's FSDP2 makes it in bf16, weights and inputs in half precision."""
    PartialState(cpu=True)
    batch, teacher = tiny.collate(tiny.rows(8).to_list()), tiny.bert(width=48).eval()
    batch[INDEX] = torch.arange(8)
    made, reader = build_distiller(tiny.bert(layers=2, seed=3), teacher, batch, losses=losses, examples=8)
    with torch.no_grad():
        _, representation = reader(teacher, batch)
    fully_shard(made, mesh=init_device_mesh("cpu", (2,)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    made(teacher=representation, **batch)["loss"].backward()
    grown = {name: p.grad.full_tensor() for name, p in made.named_parameters() if p.grad is not None}
    assert any(name.startswith("losses.") for name in grown) and all(x.isfinite().all() for x in grown.values())


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="FSDP2 of torch 2.6 has no streams on a CPU")
@pytest.mark.parametrize("losses", [{"itrd": {}, "crd": {}}, {"srd": {}, "minilmv2": {"relation_heads": 4}}], ids=str)
def test_losses_take_weights_that_fsdp_holds_in_half_precision(tmp_path, losses):
    on_ranks(half_step, tmp_path, losses)


@pytest.mark.parametrize("loss", ["vkd", "wcord"])
def test_a_loss_that_takes_no_half_precision_is_refused_where_weights_are_held_in_it(tmp_path, monkeypatch, loss):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=f"{loss} with FSDP or DeepSpeed in half precision"):
        check_batches(ITRDArguments(str(tmp_path), losses={loss: {}}, use_cpu=True, bf16=True), distils=True)
    check_batches(ITRDArguments(str(tmp_path), losses={loss: {}}, use_cpu=True, bf16=False), distils=True)


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="FSDP2 of torch 2.6 has no streams on a CPU")
@pytest.mark.parametrize("losses", [{"itrd": {}, "kd": {}}, {"srd": {}}, {"vkd": {}}], ids=str)
def test_weights_that_are_cut_over_ranks_have_the_same_gradients(tmp_path, losses):
    on_ranks(sharded_step, tmp_path, {"losses": losses})


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_samples(x) is x


@pytest.mark.parametrize("losses,rows,warned", [("itrd", 4, True), ("itrd", 8, False), ("kd", 4, False)])
def test_few_samples_are_warned_of_where_a_loss_takes_statistics_over_them(tmp_path, capsys, losses, rows, warned):
    trainer(tmp_path, losses={losses: {}}, per_device_train_batch_size=rows)
    assert ("raise it or use" in capsys.readouterr().err) == warned
