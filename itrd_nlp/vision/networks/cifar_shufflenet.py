"""ShuffleNets V1 (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018) for 32x32 images."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import CifarNet, add_layers, conv1x1, conv3x3, register, stem


class Bottleneck(nn.Module):
    """V1: a depthwise 3x3 between grouped 1x1 convolutions; at stride 2 the pooled input is concatenated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int):
        super().__init__()
        wide = out_channels - in_channels if stride == 2 else out_channels
        middle, first = wide // 4, 1 if in_channels == 24 else groups
        self.conv1, self.bn1, self.relu1 = conv1x1(in_channels, middle, groups=first), nn.BatchNorm2d(middle), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first)
        self.conv2, self.bn2 = conv3x3(middle, middle, stride, groups=middle), nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv1x1(middle, wide, groups=groups), nn.BatchNorm2d(wide), nn.ReLU()
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        return self.relu3(out + x if self.pool is None else torch.cat([out, self.pool(x)], 1))


class SplitBlock(nn.Module):
    """V2: three convolutions of one half of the channels; then both halves are shuffled."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1, self.relu1 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU()
        self.conv2, self.bn2 = conv3x3(half, half, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3, self.relu3 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        unchanged, half = x.chunk(2, 1)
        half = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(half)))))
        # the unchanged half went through a ReLU before, so a second one keeps it; thus the input of relu3 is the
        # stage's features before their activation
        return self.relu3(self.shuffle(torch.cat([unchanged, self.bn3(self.conv3(half))], 1)))


class DownBlock(nn.Module):
    """V2: two branches of stride 2, concatenated and shuffled."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1, self.bn1 = conv3x3(in_channels, in_channels, 2, groups=in_channels), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2, self.relu2 = conv1x1(in_channels, half), nn.BatchNorm2d(half), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv1x1(in_channels, half), nn.BatchNorm2d(half), nn.ReLU()
        self.conv4, self.bn4 = conv3x3(half, half, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5, self.relu5 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        return self.shuffle(torch.cat([left, self.relu5(self.bn5(self.conv5(right)))], 1))


def shufflenetv1(groups: int = 3, **head: Any) -> CifarNet:
    """Build groups of 4, 8 and 4 blocks with 240, 480 and 960 channels."""
    body = stem(conv1x1(head.get("in_chans", 3), 24))
    block = partial(Bottleneck, groups=groups)
    stages = add_layers(body, block, (24, 240, 480, 960), (4, 8, 4), "relu3:input", stride=2)
    return CifarNet(body, stages, 960, "linear", **head)


def shufflenetv2(**head: Any) -> CifarNet:
    """Build groups of 4, 8 and 4 blocks with 116, 232 and 464 channels, and 1,024 features."""

    def block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return DownBlock(in_channels, out_channels) if stride == 2 else SplitBlock(out_channels)

    body = stem(conv1x1(head.get("in_chans", 3), 24))
    stages = add_layers(body, block, (24, 116, 232, 464), (4, 8, 4), "relu3:input", stride=2)
    body |= {"conv2": conv1x1(464, 1024), "bn2": nn.BatchNorm2d(1024), "relu2": nn.ReLU()}
    return CifarNet(body, stages, 1024, "linear", **head)


register("cifar_shufflenetv1", shufflenetv1, pool_size=(4, 4))
register("cifar_shufflenetv2", shufflenetv2, pool_size=(4, 4))
