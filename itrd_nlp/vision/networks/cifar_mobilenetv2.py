"""MobileNetV2 of half width for 32x32 images (Sandler et al., CVPR 2018), with ReLU instead of ReLU6."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import CifarNet, Stage, conv1x1, conv3x3, init_weights, register, repeat

# expansion, channels, blocks and stride of each group
GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
STAGES = ((1, 2), (2, 4), (4, 8), (6, 16))  # index of a group, and its reduction


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise 3x3, 1x1 to fewer without activation (section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        wide = in_channels * expansion
        self.conv = nn.Sequential(
            *(conv1x1(in_channels, wide), nn.BatchNorm2d(wide), nn.ReLU()),
            *(conv3x3(wide, wide, stride, groups=wide), nn.BatchNorm2d(wide), nn.ReLU()),
            *(conv1x1(wide, out_channels), nn.BatchNorm2d(out_channels)),
        )
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def mobilenetv2_half(**head: Any) -> CifarNet:
    """Build seven groups of half the paper's width, and its 1,280 features."""
    groups, in_channels = [], 16
    for expansion, out_channels, count, stride in GROUPS:
        block = partial(InvertedResidual, expansion=expansion)
        groups.append(repeat(block, count, in_channels, out_channels, stride))
        in_channels = out_channels
    body = {
        "conv1": nn.Sequential(conv3x3(head.get("in_chans", 3), 16, 2), nn.BatchNorm2d(16), nn.ReLU()),
        "blocks": nn.Sequential(*groups),
        "conv2": nn.Sequential(conv1x1(in_channels, 1280), nn.BatchNorm2d(1280), nn.ReLU()),
    }
    stages = [Stage(f"blocks.{i}", GROUPS[i][1], reduction, f"blocks.{i}") for i, reduction in STAGES]
    net = CifarNet(body, stages, 1280, "classifier.0", **head)
    init_weights(net, classifier_std=0.01)
    return net


register("cifar_mobilenetv2_half", mobilenetv2_half, pool_size=(2, 2))
