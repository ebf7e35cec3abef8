"""ShuffleNets V1 (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018) for 32x32 images."""

from typing import Any

import torch
from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import CifarNet, Stage, conv1x1, conv3x3, register


class Bottleneck(nn.Module):
    """V1: grouped 1x1 convolutions around one along each channel; a stride of 2 concatenates the pooled input."""

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
    """V2: one half of the channels passes three convolutions, then both halves are mixed."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1, self.relu1 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU()
        self.conv2, self.bn2 = conv3x3(half, half, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3, self.relu3 = conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(out)))))
        # what was kept is an activation already: the last one changes nothing of it, and its input is the stage's
        # features before their activation
        return self.relu3(self.shuffle(torch.cat([kept, self.bn3(self.conv3(out))], 1)))


class DownBlock(nn.Module):
    """V2: two branches of stride 2, concatenated and mixed."""

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
    """240, 480 and 960 channels in 4, 8 and 4 blocks."""
    body, in_channels = _stem(head), 24
    stages = []
    for i, (out_channels, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        first = Bottleneck(in_channels, out_channels, 2, groups)
        body[f"layer{i}"] = nn.Sequential(
            first, *[Bottleneck(out_channels, out_channels, 1, groups) for _ in range(count - 1)]
        )
        stages.append(Stage(f"layer{i}", out_channels, 2**i, f"layer{i}.{count - 1}.relu3:input"))
        in_channels = out_channels
    return CifarNet(body, stages, in_channels, "linear", **head)


def shufflenetv2(**head: Any) -> CifarNet:
    """116, 232 and 464 channels, each after a block that halves the size, and 1,024 features."""
    body, in_channels = _stem(head), 24
    stages = []
    for i, (out_channels, count) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
        body[f"layer{i}"] = nn.Sequential(
            DownBlock(in_channels, out_channels), *[SplitBlock(out_channels) for _ in range(count)]
        )
        stages.append(Stage(f"layer{i}", out_channels, 2**i, f"layer{i}.{count}.relu3:input"))
        in_channels = out_channels
    body |= {"conv2": conv1x1(in_channels, 1024), "bn2": nn.BatchNorm2d(1024), "relu2": nn.ReLU()}
    return CifarNet(body, stages, 1024, "linear", **head)


def _stem(head: dict[str, Any]) -> dict[str, nn.Module]:
    return {"conv1": conv1x1(head.get("in_chans", 3), 24), "bn1": nn.BatchNorm2d(24), "relu": nn.ReLU()}


register(__name__, "cifar_shufflenetv1", shufflenetv1, "linear", pool_size=(4, 4))
register(__name__, "cifar_shufflenetv2", shufflenetv2, "linear", pool_size=(4, 4))
