"""ResNets for 32x32 images: with 1x1 convolutions or zeros in the shortcuts, and ResNet-50."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CifarNet,
    add_layers,
    conv1x1,
    conv3x3,
    init_weights,
    register,
    stem,
)

WIDTHS, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


class ZeroShortcut(nn.Module):
    """Every ``stride``-th pixel, with channels of zeros before and after (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.before = stride, (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: bool):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(out_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride, zeros)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the inner ones a quarter as wide, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        width = out_channels // 4
        self.conv1, self.bn1, self.relu1 = conv1x1(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv1x1(width, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, zeros: bool = False) -> nn.Module:
    """The identity where the shape stays, else zeros or a 1x1 convolution."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    # built in both cases, so that a seed keeps drawing the same weights for the layers that follow
    convolution = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    return ZeroShortcut(in_channels, out_channels, stride) if zeros else convolution


def resnet(depth: int, widths: tuple[int, ...] = WIDTHS, zeros: bool = False, **head: Any) -> CifarNet:
    """Build three groups of (depth - 2) / 6 basic blocks (He et al. 2016, section 4.2)."""
    body = stem(conv3x3(head.get("in_chans", 3), widths[0]))
    stages = add_layers(body, partial(BasicBlock, zeros=zeros), widths, [(depth - 2) // 6] * 3, "relu2:input")
    net = CifarNet(body, stages, widths[-1], "linear" if zeros else "fc", **head)
    init_weights(net, "fan_in" if zeros else "fan_out")
    if zeros and net.num_classes:  # as in the code that published option A's weights
        nn.init.kaiming_normal_(net.get_classifier().weight)
    return net


def resnet50(**head: Any) -> CifarNet:
    """Build a ResNet-50 whose stem keeps the size."""
    body = stem(conv3x3(head.get("in_chans", 3), 64))
    stages = add_layers(body, Bottleneck, (64, 256, 512, 1024, 2048), (3, 4, 6, 3), "relu3:input")
    net = CifarNet(body, stages, 2048, "linear", **head)
    init_weights(net)
    return net


for _name, _depth, _widths in (
    ("cifar_resnet20", 20, WIDTHS),
    ("cifar_resnet32", 32, WIDTHS),
    ("cifar_resnet56", 56, WIDTHS),
    ("cifar_resnet110", 110, WIDTHS),
    ("cifar_resnet8x4", 8, WIDE),
    ("cifar_resnet32x4", 32, WIDE),
):
    register(_name, partial(resnet, _depth, _widths), pool_size=(8, 8))
for _depth in (20, 32, 56):  # of published CIFAR-10 weights, trained with ImageNet's mean and deviation
    _cfg: dict[str, Any] = {"num_classes": 10, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "pool_size": (8, 8)}
    register(f"cifar_resnet{_depth}a", partial(resnet, _depth, zeros=True), **_cfg)
register("cifar_resnet50", resnet50, pool_size=(4, 4))
