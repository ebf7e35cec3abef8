"""ResNets for 32x32 images: with 1x1 convolutions or with zeros where the width grows, and ResNet-50."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CifarNet,
    Stage,
    conv1x1,
    conv3x3,
    init_kaiming,
    register,
)


class ZeroShortcut(nn.Module):
    """Every ``stride``-th pixel, and channels of zeros on both sides (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.before = stride, (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: bool):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = (
            conv3x3(in_channels, out_channels, stride),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.conv2, self.bn2, self.relu2 = conv3x3(out_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolved = (conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
            self.downsample = ZeroShortcut(in_channels, out_channels, stride) if zeros else nn.Sequential(*convolved)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, 4 ``width`` channels outside and ``width`` inside."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = 4 * width
        self.conv1, self.bn1, self.relu1 = conv1x1(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv1x1(width, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


def resnet(depth: int, widths: tuple[int, ...] = (16, 16, 32, 64), zeros: bool = False, **head: Any) -> CifarNet:
    """Three groups of (depth - 2) / 6 basic blocks (He et al. 2016, section 4.2)."""
    count = (depth - 2) // 6
    body: dict[str, nn.Module] = {
        "conv1": conv3x3(head.get("in_chans", 3), widths[0]), "bn1": nn.BatchNorm2d(widths[0]), "relu": nn.ReLU()
    }  # fmt: skip
    stages = []
    for i, width in enumerate(widths[1:], 1):
        first = BasicBlock(widths[i - 1], width, 1 if i == 1 else 2, zeros)
        body[f"layer{i}"] = nn.Sequential(first, *[BasicBlock(width, width, 1, zeros) for _ in range(count - 1)])
        stages.append(Stage(f"layer{i}", width, 2 ** (i - 1), f"layer{i}.{count - 1}.relu2:input"))
    net = CifarNet(body, stages, widths[-1], "linear" if zeros else "fc", **head)
    init_kaiming(net, "fan_in" if zeros else "fan_out")
    if zeros and net.num_classes:  # the authors of option A's code draw the classifier alike
        nn.init.kaiming_normal_(net.get_classifier().weight)
    return net


def resnet50(**head: Any) -> CifarNet:
    """ResNet-50 whose stem keeps the size."""
    body: dict[str, nn.Module] = {
        "conv1": conv3x3(head.get("in_chans", 3), 64), "bn1": nn.BatchNorm2d(64), "relu": nn.ReLU()
    }  # fmt: skip
    stages, in_channels = [], 64
    for i, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        first = Bottleneck(in_channels, width, 1 if i == 1 else 2)
        in_channels = 4 * width
        body[f"layer{i}"] = nn.Sequential(first, *[Bottleneck(in_channels, width, 1) for _ in range(count - 1)])
        stages.append(Stage(f"layer{i}", in_channels, 2 ** (i - 1), f"layer{i}.{count - 1}.relu3:input"))
    net = CifarNet(body, stages, in_channels, "linear", **head)
    init_kaiming(net, "fan_out")
    return net


WIDE = (32, 64, 128, 256)
for _name, _net in {
    "cifar_resnet20": partial(resnet, 20),
    "cifar_resnet32": partial(resnet, 32),
    "cifar_resnet56": partial(resnet, 56),
    "cifar_resnet110": partial(resnet, 110),
    "cifar_resnet8x4": partial(resnet, 8, WIDE),
    "cifar_resnet32x4": partial(resnet, 32, WIDE),
}.items():
    register(__name__, _name, _net, pool_size=(8, 8))
for _depth in (20, 32, 56):  # of the published CIFAR-10 weights, which were trained on images normalised as ImageNet's
    _cfg: dict[str, Any] = {"num_classes": 10, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "pool_size": (8, 8)}
    register(__name__, f"cifar_resnet{_depth}a", partial(resnet, _depth, zeros=True), "linear", **_cfg)
register(__name__, "cifar_resnet50", resnet50, "linear", pool_size=(4, 4))
