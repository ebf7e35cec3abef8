"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis, BMVC 2016)."""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn

from itrd_nlp.vision.networks.cifar_net import CifarNet, Stage, conv1x1, conv3x3, init_weights, register, repeat


class PreactBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(out_channels), nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


def wrn(depth: int, factor: int, **head: Any) -> CifarNet:
    """Build three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times ``factor`` channels."""
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    body: dict[str, nn.Module] = {"conv1": conv3x3(head.get("in_chans", 3), 16)}
    for i in (1, 2, 3):
        group = repeat(PreactBlock, (depth - 4) // 6, widths[i - 1], widths[i], 1 if i == 1 else 2)
        body[f"block{i}"] = nn.Sequential(OrderedDict(layer=group))
    body |= {"bn1": nn.BatchNorm2d(widths[3]), "relu": nn.ReLU()}
    # a block ends in a sum, which the next block normalises first
    preact = {1: "block2.layer.0.bn1", 2: "block3.layer.0.bn1", 3: "bn1"}
    stages = [Stage(f"block{i}", widths[i], 2 ** (i - 1), module) for i, module in preact.items()]
    net = CifarNet(body, stages, widths[3], **head)
    init_weights(net)
    if net.num_classes:
        nn.init.zeros_(net.get_submodule("fc").bias)
    return net


for _depth, _factor in ((16, 2), (40, 1), (40, 2)):
    register(f"cifar_wrn_{_depth}_{_factor}", partial(wrn, _depth, _factor), pool_size=(8, 8))
