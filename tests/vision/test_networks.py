"""The networks for 32x32 images, through timm."""

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from torch import nn  # noqa: E402

import itrd_nlp.vision  # noqa: E402, F401
from itrd_nlp.distillation.feature_extractor import ForwardHooks  # noqa: E402

PARAMETERS = {  # with 100 classes, as published
    "cifar_resnet20": 278_324,
    "cifar_resnet32": 472_756,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "cifar_wrn_16_2": 703_284,
    "cifar_wrn_40_1": 569_780,
    "cifar_wrn_40_2": 2_255_156,
    "cifar_vgg8": 3_965_028,
    "cifar_vgg13": 9_462_180,
    "cifar_mobilenetv2_half": 812_836,
    "cifar_resnet50": 23_705_252,
    "cifar_shufflenetv1": 949_258,
    "cifar_shufflenetv2": 1_355_528,
}
OPTION_A = {"cifar_resnet20a": 269_722, "cifar_resnet32a": 464_154, "cifar_resnet56a": 853_018}  # with 10 classes
BINARY = {"cifar_resnet18_recu": 11_005_002, "cifar_resnet18_fp": 11_001_162, "cifar_vgg_small_fp": 4_660_106}
NAMES = [*PARAMETERS, *OPTION_A]
SMALL = [name for name in NAMES if name not in ("cifar_resnet50", "cifar_vgg13", "cifar_resnet32x4", "cifar_resnet110")]


def images(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_all_are_registered_and_nothing_else():
    binary = [f"cifar_{net}_{kind}" for net in ("resnet18", "vgg_small") for kind in ("fp", "recu", "rbnn")]
    assert sorted(timm.list_models("cifar_*")) == sorted([*NAMES, *binary])


@pytest.mark.parametrize("name", [*NAMES, *BINARY])
def test_parameters_are_those_that_were_published(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    assert sum(p.numel() for p in net.parameters()) == (PARAMETERS | OPTION_A | BINARY)[name]


@pytest.mark.parametrize("name", SMALL)
def test_timm_contract(name):
    net = timm.create_model(name, num_classes=7).eval()
    x = images()
    features = net.forward_features(x)
    pooled = net.forward_head(features, pre_logits=True)
    assert features.shape[:2] == (2, net.num_features) and pooled.shape == (2, net.num_features)
    assert net(x).shape == (2, 7)
    torch.testing.assert_close(net.get_classifier()(pooled), net(x))
    assert net.get_submodule(net.get_classifier(name_only=True)).out_features == 7
    assert net.pretrained_cfg["classifier"] == net.get_classifier(name_only=True)
    net.get_submodule(net.pretrained_cfg["first_conv"])
    assert features.shape[2:] == net.pretrained_cfg["pool_size"]
    net.reset_classifier(0)
    torch.testing.assert_close(net(x), pooled)
    net.reset_classifier(0, "")
    torch.testing.assert_close(net(x), features)


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name):
    net = timm.create_model(name).eval()
    read = timm.create_model(name, features_only=True).eval()
    read.load_state_dict(dict(zip(read.state_dict(), net.state_dict().values(), strict=False)))  # it ends earlier
    x = images()
    with ForwardHooks(net, [info["module"] for info in net.feature_info]) as hooks:
        net(x)
    for found, tapped, info in zip(read(x), hooks.features, net.feature_info, strict=True):
        torch.testing.assert_close(found, tapped)
        assert found.shape[1:] == (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])


@pytest.mark.parametrize(
    "name", ["cifar_resnet8x4", "cifar_resnet20a", "cifar_vgg8", "cifar_shufflenetv1", "cifar_shufflenetv2"]
)
def test_features_before_the_activation(name):
    net = timm.create_model(name).eval()
    hooks = ForwardHooks(net, [info[kind] for info in net.feature_info for kind in ("module", "preact")])
    with hooks:
        net(images())
    for after, before in zip(hooks.features[::2], hooks.features[1::2], strict=True):
        assert (before < 0).any()
        torch.testing.assert_close(before.relu(), after)


def test_preactivated_features_of_a_wide_residual_network():
    net = timm.create_model("cifar_wrn_16_2").eval()
    with ForwardHooks(net, ["block1", "block2.layer.0.bn1"]) as hooks:
        net(images())
    torch.testing.assert_close(net.block2.layer[0].bn1(hooks.features[0]), hooks.features[1])


def test_zeros_pad_on_both_sides():
    from itrd_nlp.vision.networks.cifar_resnet import ZeroShortcut

    x = images()
    out = ZeroShortcut(3, 8, 2)(x)
    torch.testing.assert_close(out[:, 2:5], x[:, :, ::2, ::2])
    assert out.shape == (2, 8, 16, 16) and not out[:, :2].any() and not out[:, 5:].any()


@pytest.mark.parametrize("name", ["cifar_resnet8x4", "cifar_wrn_16_2", "cifar_mobilenetv2_half", "cifar_shufflenetv2"])
def test_a_checkpoint_of_the_published_layout_loads_strictly(name, tmp_path):
    trained = timm.create_model(name)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": trained.state_dict(), "accuracy": torch.tensor(70.0), "optimizer": {}}, path)
    loaded = timm.create_model(name, checkpoint_path=path)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model("cifar_resnet56", checkpoint_path=path)


LAYOUT = {  # names and shapes of published checkpoints
    "cifar_resnet56": {"layer2.0.downsample.1.running_mean": (32,), "layer3.8.bn2.weight": (64,), "fc.bias": (100,)},
    "cifar_resnet32x4": {"conv1.weight": (32, 3, 3, 3), "layer1.0.downsample.0.weight": (64, 32, 1, 1)},
    "cifar_wrn_40_2": {"block2.layer.0.convShortcut.weight": (64, 32, 1, 1), "bn1.weight": (128,), "fc.bias": (100,)},
    "cifar_vgg13": {
        "block4.3.weight": (512, 512, 3, 3),
        "block0.1.running_var": (64,),
        "classifier.weight": (100, 512),
    },
    "cifar_resnet50": {"layer1.0.shortcut.0.weight": (256, 64, 1, 1), "linear.weight": (100, 2048)},
    "cifar_mobilenetv2_half": {
        "conv1.1.weight": (16,),
        "blocks.6.0.conv.7.bias": (160,),
        "conv2.0.weight": (1280, 160, 1, 1),
        "classifier.0.bias": (100,),
    },
    "cifar_shufflenetv1": {"conv1.weight": (24, 3, 1, 1), "linear.weight": (100, 960)},
    "cifar_shufflenetv2": {"conv2.weight": (1024, 464, 1, 1), "bn2.bias": (1024,), "linear.weight": (100, 1024)},
    "cifar_resnet56a": {"layer3.8.conv2.weight": (64, 64, 3, 3), "linear.weight": (10, 64)},
}


@pytest.mark.parametrize("name", LAYOUT)
def test_names_and_shapes_are_those_of_published_checkpoints(name):
    state = timm.create_model(name).state_dict()
    assert {key: tuple(state[key].shape) for key in LAYOUT[name]} == LAYOUT[name]


def test_other_images_dtypes_and_devices():
    net = timm.create_model("cifar_resnet20", in_chans=1, dtype=torch.float64)
    assert net(torch.randn(2, 1, 32, 32, dtype=torch.float64)).dtype == torch.float64
    assert timm.create_model("cifar_vgg8", device="meta").block0[0].weight.is_meta


def test_checkpointed_gradients_are_the_same():
    net = timm.create_model("cifar_resnet8x4", drop_rate=0.0)
    grads = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.train().zero_grad()
        net(images()).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_parameter_groups_cover_all_parameters():
    from timm.optim import param_groups_layer_decay

    for name in ("cifar_resnet20", "cifar_wrn_16_2"):
        net = timm.create_model(name)
        groups = param_groups_layer_decay(net, layer_decay=0.5)
        assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
        assert len({group["lr_scale"] for group in groups}) > 3


def test_every_convolution_learns():
    for name in ("cifar_resnet20a", "cifar_mobilenetv2_half", "cifar_shufflenetv1", "cifar_shufflenetv2"):
        net = timm.create_model(name)
        net(images(4)).square().mean().backward()
        assert all(m.weight.grad.abs().sum() > 0 for m in net.modules() if isinstance(m, nn.Conv2d))


def test_a_split_block_computes_what_its_paper_says():
    """Half of the channels passes unchanged, the other three convolutions; then both halves take turns."""
    block = timm.create_model("cifar_shufflenetv2").layer1[1].eval()
    x = torch.rand(2, 116, 8, 8, requires_grad=True)
    kept, half = x.chunk(2, 1)
    half = block.bn1(block.conv1(half)).relu()
    half = block.bn3(block.conv3(block.bn2(block.conv2(half)))).relu()
    expected = torch.stack([kept, half], 2).flatten(1, 2)  # channel 0 of one, channel 0 of the other, ...
    torch.testing.assert_close(block(x), expected)
    weight = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (block(x), expected))
    torch.testing.assert_close(found, wanted)


def spread(weight):
    return weight.detach().std(correction=0).item()


def fan(conv, mode):
    kernel = conv.kernel_size[0] * conv.kernel_size[1]
    return kernel * (conv.in_channels // conv.groups if mode == "in" else conv.out_channels)


@pytest.mark.parametrize(
    "name,mode",
    [
        ("cifar_resnet20", "out"),
        ("cifar_resnet50", "out"),
        ("cifar_resnet8x4", "out"),
        ("cifar_resnet20a", "in"),
        ("cifar_resnet56a", "in"),
        ("cifar_resnet18_fp", "in"),
        ("cifar_resnet18_recu", "in"),
        ("cifar_vgg_small_fp", "out"),
        ("cifar_vgg_small_recu", "out"),
        ("cifar_vgg_small_rbnn", "out"),
        ("cifar_wrn_16_2", "out"),
        ("cifar_vgg8", "out"),
        ("cifar_mobilenetv2_half", "out"),
    ],
)
def test_convolutions_start_as_in_their_authors_code(name, mode):
    torch.manual_seed(0)
    net = timm.create_model(name)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    if name == "cifar_mobilenetv2_half":
        convs = [conv for conv in convs if conv.groups == 1]
    assert len(convs) > 4
    for conv in convs:
        count = conv.weight.numel()  # the standard deviation of so many normal numbers is known to 1 / sqrt(2 count)
        assert spread(conv.weight) == pytest.approx((2 / fan(conv, mode)) ** 0.5, rel=5 / (2 * count) ** 0.5)
        assert conv.bias is None or not conv.bias.any()


def test_the_first_convolution_of_resnet50_starts_as_published():
    torch.manual_seed(0)
    assert spread(timm.create_model("cifar_resnet50").conv1.weight) == pytest.approx(0.0589, rel=0.06)


def test_rbnns_resnet_starts_as_pytorch_does():
    torch.manual_seed(0)
    net = timm.create_model("cifar_resnet18_rbnn")
    for conv in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
        bound = fan(conv, "in") ** -0.5  # uniform between both
        assert conv.weight.abs().max() <= bound
        assert spread(conv.weight) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["cifar_vgg_small_fp", "cifar_vgg_small_recu", "cifar_vgg_small_rbnn", "cifar_vgg8"])
def test_the_classifiers_of_vggs_start_small(name):
    torch.manual_seed(0)
    classifier = timm.create_model(name).get_classifier()
    assert spread(classifier.weight) == pytest.approx(0.01, rel=0.05) and not classifier.bias.any()
    assert timm.create_model(name, num_classes=0)(images()).ndim == 2


def test_rbnns_scales_are_of_pytorchs_own_weights():
    torch.manual_seed(0)
    conv = timm.create_model("cifar_vgg_small_rbnn").conv3
    expected = fan(conv, "in") ** -0.5 / 2  # the mean size of a uniform number between minus and plus the bound
    assert conv.alpha.mean().item() == pytest.approx(expected, rel=0.05)
