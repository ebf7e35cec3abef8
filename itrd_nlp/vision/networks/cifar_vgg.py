"""VGGs with batch normalisation for 32x32 images."""

from functools import partial
from typing import Any

from torch import nn

from itrd_nlp.vision.networks.cifar_net import CifarNet, Stage, init_weights, register

WIDTHS = (64, 128, 256, 512, 512)


def vgg(convolutions: int, **head: Any) -> CifarNet:
    """Build five blocks of ``convolutions`` 3x3 convolutions; max pooling follows the first three."""
    body: dict[str, nn.Module] = {}
    in_channels, stages, reduction = head.get("in_chans", 3), [], 1
    for i, width in enumerate(WIDTHS):
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        body[f"block{i}"], body[f"relu{i}"] = nn.Sequential(*layers[:-1]), layers[-1]
        if i:
            stages.append(Stage(f"relu{i}", width, reduction, f"block{i}"))
        if i < 3:
            body[f"pool{i}"] = nn.MaxPool2d(2)
            reduction *= 2
    net = CifarNet(body, stages, in_channels, "classifier", **head)
    init_weights(net, classifier_std=0.01)
    return net


for _name, _convolutions in (("cifar_vgg8", 1), ("cifar_vgg13", 2)):
    register(_name, partial(vgg, _convolutions), pool_size=(4, 4))
