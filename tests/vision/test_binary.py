"""ReCU and RBNN against their formulas, and their schedules."""

import math

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from torch import nn  # noqa: E402
from transformers import TrainerControl, TrainerState, TrainingArguments  # noqa: E402

import itrd_nlp.vision  # noqa: E402, F401
from itrd_nlp.distillation.feature_extractor import ForwardHooks  # noqa: E402
from itrd_nlp.export.export import export  # noqa: E402
from itrd_nlp.inference.saved_models import load_trained  # noqa: E402
from itrd_nlp.models.onnx_model import OnnxModel  # noqa: E402
from itrd_nlp.training.loaders import EpochBegins  # noqa: E402
from itrd_nlp.utils.datasets import Epoch  # noqa: E402
from itrd_nlp.vision.binary import RBNNConv2d, ReCUConv2d, rbnn_slope, recu_tau  # noqa: E402
from itrd_nlp.vision.models import load_image_model  # noqa: E402


def inputs(n=3, channels=4):
    return torch.randn(n, channels, 5, 5, generator=torch.Generator().manual_seed(1))


def test_recu_forward_matches_the_formula():
    torch.manual_seed(0)
    conv = ReCUConv2d(4, 6)
    conv.tau.fill_(0.9)
    x = inputs()
    w1 = torch.empty_like(conv.weight)
    for c, w in enumerate(conv.weight.detach()):
        values = w.flatten().tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        w1[c] = (w - mean) / (math.sqrt(var + 1e-5) / (2 * math.sqrt(2)))
    expected = nn.functional.conv2d(x.sign(), w1.sign(), padding=1) * conv.alpha
    for training in (True, False):
        torch.testing.assert_close(conv.train(training)(x), expected)


def test_recu_gradients_match_the_formula():
    torch.manual_seed(0)
    conv = ReCUConv2d(4, 6)
    conv.tau.fill_(0.6)  # so low that the clamp is felt
    x = inputs().requires_grad_()
    conv.train()(x).square().sum().backward()
    # the same with the signs as constants, then their slopes by hand
    w = conv.weight.detach()
    flat = w.flatten(1)
    w1 = (flat - flat.mean(1, keepdim=True)) / ((flat.var(1, keepdim=True) + 1e-5).sqrt() / (2 * math.sqrt(2)))
    bound = -w1.abs().mean() * math.log(2 - 2 * 0.6)
    signs, weights = x.detach().sign().requires_grad_(), w1.reshape(w.shape).sign().requires_grad_()
    (nn.functional.conv2d(signs, weights, padding=1) * conv.alpha.detach()).square().sum().backward()
    leaf = w.clone().requires_grad_()
    flat = leaf.flatten(1)
    again = (flat - flat.mean(1, keepdim=True)) / ((flat.var(1, keepdim=True) + 1e-5).sqrt() / (2 * math.sqrt(2)))
    inside = (again.abs() < bound).detach()
    assert 0 < inside.float().mean() < 1
    (again * inside * weights.grad.flatten(1)).sum().backward()
    torch.testing.assert_close(conv.weight.grad, leaf.grad)
    y = x.detach().clone().requires_grad_()
    scaled = y / (y.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    slope = (2 - 2 * scaled.abs()).clamp_min(0).detach()
    (scaled * slope * signs.grad).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("t", [0.5, 3.0])
def test_rbnn_forward_and_slopes_match_the_formula(t):
    torch.manual_seed(0)
    conv = RBNNConv2d(4, 6)
    assert (len(conv.r1), len(conv.r2)) == (6, 6)  # 36 weights a filter
    conv.fit = False
    with torch.no_grad():
        conv.theta.uniform_(0.2, 1.4)
        conv.t.fill_(t)
    x = inputs().requires_grad_()
    out = conv(x)

    def standard(v):
        flat = v.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).reshape(v.shape)

    w2 = standard(conv.weight.detach())
    rotated = torch.stack([conv.r1.T @ w.reshape(6, 6) @ conv.r2 for w in w2]).reshape(w2.shape)
    w3 = w2 + conv.theta.detach().sin().abs() * (rotated - w2)
    a = standard(x.detach())
    torch.testing.assert_close(out, nn.functional.conv2d(a.sign(), w3.sign(), padding=1) * conv.alpha)
    out.sum().backward()
    signs, weights = a.sign().requires_grad_(), w3.sign().requires_grad_()
    nn.functional.conv2d(signs, weights, padding=1).mul(conv.alpha.detach()).sum().backward()
    y = x.detach().clone().requires_grad_()
    at_least_one = max(t, 1.0)
    slope = (math.sqrt(2) * at_least_one - at_least_one**2 * a.abs()).clamp_min(0)
    (standard(y) * slope * signs.grad).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    slope = max(1 / t, 1.0) * (math.sqrt(2) * t - t**2 * w3.abs()).clamp_min(0)
    w, theta = (p.detach().clone().requires_grad_() for p in (conv.weight, conv.theta))
    share = theta.sin().abs()
    follows = (1 - share) * standard(w) + share * rotated  # what they are rotated to is not a function of the weights
    (follows * slope * weights.grad).sum().backward()
    torch.testing.assert_close(conv.weight.grad, w.grad)
    torch.testing.assert_close(conv.theta.grad, theta.grad)


def test_rbnn_weights_receive_what_the_rotation_leaves():
    """(1 - |sin(theta)|) G of a gradient G: nothing where a filter follows its rotation whole."""
    gradients = []
    for theta in (0.0, math.pi / 6, math.pi / 2):
        torch.manual_seed(0)
        conv = RBNNConv2d(4, 6)
        conv.fit = False
        with torch.no_grad():
            conv.theta.fill_(theta)
        conv.scaled_weights().mul(inputs(6)[:, :, :3, :3]).sum().backward()
        gradients.append(conv.weight.grad)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[1], gradients[0] / 2)
    assert gradients[2].abs().max() < 1e-6


def test_rotations_stay_orthogonal_and_bring_filters_closer_to_their_signs():
    torch.manual_seed(0)
    conv = RBNNConv2d(8, 12)
    filters = torch.randn(12, len(conv.r1), len(conv.r2))

    def fit():
        return (conv.r1.T @ filters @ conv.r2).abs().sum()

    values = [fit()]
    for _ in range(3):
        conv._fit(filters, rounds=1)
        values.append(fit())
    assert values == sorted(values) and values[-1] > 1.02 * values[0]
    for r in (conv.r1, conv.r2):
        torch.testing.assert_close(r.T @ r, torch.eye(len(r)), atol=1e-5, rtol=0)


def test_rotations_are_fitted_once_an_epoch_and_not_again_when_resumed():
    conv = RBNNConv2d(4, 6)
    calls = []
    conv._fit = lambda filters: calls.append(1)
    for expected, resumed in [(1, False), (1, True), (2, False)]:
        conv.start_epoch(Epoch(1, 10, 0, resumed))
        conv.eval()(inputs())
        conv.train()(inputs())
        conv(inputs())
        assert len(calls) == expected


def test_the_schedule_reaches_what_is_trained(tmp_path):
    model = timm.create_model("cifar_resnet18_recu")
    state, begins = TrainerState(global_step=30, num_train_epochs=60), EpochBegins(None)
    begins.on_train_begin(TrainingArguments(str(tmp_path)), state, TrainerControl(), train_dataloader=[0])
    begins.on_epoch_begin(TrainingArguments(str(tmp_path)), state, TrainerControl(), model=model)
    taus = [m.tau.item() for m in model.modules() if isinstance(m, ReCUConv2d)]
    assert len(taus) == 16 and taus == pytest.approx([recu_tau(30, 60)] * 16)
    assert rbnn_slope(60, 60) == pytest.approx(10)


def test_the_schedule_is_saved_with_the_weights():
    model = timm.create_model("cifar_vgg_small_rbnn")
    assert sum(key.endswith(".t") for key in model.state_dict()) == 5


@pytest.mark.parametrize("kind", ["fp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("recu", "rbnn"))])
def test_networks_learn_something(kind):
    torch.manual_seed(0)
    model = timm.create_model(f"cifar_vgg_small_{kind}", num_classes=2)
    x = torch.randn(16, 3, 32, 32)
    x[8:, 0] += 2
    labels = torch.arange(16) // 8
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    values = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_before_or_after_the_normalisation_is_an_option():
    nets = [timm.create_model("cifar_resnet18_recu", normalised=x).train() for x in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    read = []
    for net in nets:
        with ForwardHooks(net, [net.feature_info[-1]["pooled"]]) as hooks:
            net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        read.append(hooks.features[0])
    torch.testing.assert_close(nets[0].bn2(read[0]), read[1])
    assert not torch.allclose(*read)


def test_a_last_batch_of_one_image_trains():
    net = timm.create_model("cifar_resnet18_recu").train()
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    assert torch.isfinite(net.linear.weight.grad).all()


@pytest.mark.parametrize("kind", [ReCUConv2d, RBNNConv2d])
def test_fixed_weights_give_the_same_outputs(kind):
    torch.manual_seed(0)
    conv, x = kind(4, 6), inputs()
    conv.train()(x)  # fits the rotations
    before = conv.eval()(x)
    conv.fix_weights()
    assert torch.equal(conv(x), before) and {*conv.weight_signs.unique().tolist()} == {-1.0, 1.0}
    assert "weight_signs" not in conv.state_dict()
    conv.weight.data.zero_()
    assert torch.equal(conv(x), before)


@pytest.mark.parametrize("kind", ["recu", "rbnn"])
def test_an_exported_network_takes_the_same_signs(kind, tmp_path):
    """onnxruntime would round the weights of RBNN, and the sums of both once scales are multiplied into filters."""
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    model, _ = load_image_model(f"cifar_vgg_small_{kind}", ["a", "b", "c"], 0)
    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(pixels)  # statistics of batch norm, and rotations
    model.save_pretrained(tmp_path / "network")
    export(str(tmp_path / "network"), tmp_path / "onnx", int8=False)
    wanted = load_trained(str(tmp_path / "network"))(pixels).logits
    found = OnnxModel(tmp_path / "onnx")(pixel_values=pixels).logits
    flipped = ((found - wanted).abs().amax(1) > 1e-3 * wanted.abs().max()).float().mean()
    assert flipped <= 0.1, float(flipped)
