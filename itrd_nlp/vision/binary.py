"""Networks with binary convolutions, ReCU and RBNN, and the same networks in full precision."""

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itrd_nlp.utils.batch_norm import Norm
from itrd_nlp.utils.datasets import ChangesWithEpochs, Epoch
from itrd_nlp.vision.networks.cifar_net import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CifarNet,
    Stage,
    add_layers,
    conv3x3,
    init_weights,
    register,
)
from itrd_nlp.vision.networks.cifar_resnet import ZeroShortcut

TAU = (0.85, 0.99)  # ReCU's quantile at the start and the end of training
EPSILON = 1e-5


class Sign(torch.autograd.Function):
    """The sign of a tensor; the backward pass multiplies the gradient by ``slope``, of the same shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class BinaryConv2d(ChangesWithEpochs, nn.Conv2d, ABC):
    """A convolution of the signs of its input with the signs of its weights, with a learned scale for each channel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: of the convolution.

    Inputs: (n, in_channels, height, width); only the signs are used.
    """

    weight_signs: Tensor | None  # once nothing changes the weights

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, padding: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.alpha = nn.Parameter(torch.rand(out_channels, 1, 1))
        self.register_buffer("weight_signs", None, persistent=False)

    def fix_weights(self) -> None:
        """Take the weights' signs once, for export: another runtime may round one that is almost 0 otherwise."""
        self.weight_signs = self.scaled_weights().detach().sign()

    @abstractmethod
    def scaled_weights(self) -> Tensor:
        """The weights whose signs are taken."""

    def convolve(self, signs: Tensor, weights: Tensor) -> Tensor:
        """Convolve and scale."""
        return F.conv2d(signs, weights, None, self.stride, self.padding) * self.alpha


class ReCUConv2d(BinaryConv2d):
    """ReCU: large weights are clamped to a quantile, so that they can still change sign (Xu et al., ICCV 2021).

    The quantile tau grows exponentially from ``TAU[0]`` to ``TAU[1]`` over the epochs.
    """

    tau: Tensor

    def __init__(self, *shape: Any, **options: Any):
        super().__init__(*shape, **options)
        self.register_buffer("tau", torch.tensor(TAU[0]))

    def start_epoch(self, epoch: Epoch) -> None:
        self.tau.fill_(recu_tau(epoch.number, epoch.of))

    def scaled_weights(self) -> Tensor:
        """The standardised weights, clamped to the quantile; (out, in, kernel, kernel)."""
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weights = (self.weight - mean) / ((var + EPSILON).sqrt() / (2 * math.sqrt(2)))
        bound = -weights.detach().abs().mean() * torch.log(2 - 2 * self.tau)
        return torch.minimum(torch.maximum(weights, -bound), bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_signs is not None:
            return self.convolve(x.sign(), self.weight_signs)
        weights = self.scaled_weights()
        if self.training:  # changes the slope, not the sign
            x = x / (x.var((1, 2, 3), keepdim=True) + EPSILON).sqrt()
        signs = Sign.apply(x, (2 - 2 * x.detach().abs()).clamp_min(0))
        return self.convolve(signs, Sign.apply(weights, torch.ones_like(weights)))


class RBNNConv2d(BinaryConv2d):
    """RBNN: weights are rotated towards their signs before they are binarised (Lin et al., NeurIPS 2020).

    A filter W, reshaped to an (a, b) matrix, is rotated to ``R1^T W R2``. Both rotations are fitted to the filters on
    the first batch of each epoch; how far a filter moves towards its rotation is learned, as ``|sin(theta)|``.

    The backward pass treats the rotated filters as constants, as the authors' code does: from a gradient G the weights
    get ``(1 - |sin(theta)|) G``, which is zero at the start, where theta is pi/2. (The paper's eq. 18 also sends
    ``|sin(theta)| G`` back through the rotation.)
    """

    def __init__(self, *shape: Any, **options: Any):
        super().__init__(*shape, **options)
        size = self.weight[0].numel()
        side = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0)
        for name, width in (("r1", side), ("r2", size // side)):
            self.register_buffer(name, torch.linalg.qr(torch.randn(width, width))[0])
        self.register_buffer("t", torch.tensor(rbnn_slope(0, 1)))
        self.theta = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), math.pi / 2))
        self.fit = True
        # the mean of PyTorch's initial weights, before the network draws its own: as in the authors' code
        self.alpha.data = self.weight.detach().abs().mean((1, 2, 3))[:, None, None]

    def start_epoch(self, epoch: Epoch) -> None:
        self.t.fill_(rbnn_slope(epoch.number, epoch.of))
        self.fit = not epoch.resumed

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_signs is not None:
            return self.convolve(_standard(x).sign(), self.weight_signs)
        with torch.autocast(x.device.type, enabled=False):  # rotations must stay orthogonal
            weights = self.scaled_weights()
        x = _standard(x)
        signs = Sign.apply(x, self._slope(x, self.t.clamp_min(1)))
        return self.convolve(signs, Sign.apply(weights, self._slope(weights, self.t) * (1 / self.t).clamp_min(1)))

    def scaled_weights(self) -> Tensor:
        """Move the standardised weights towards the rotated ones; (out, in, kernel, kernel)."""
        weights = _standard(self.weight)
        filters = weights.detach().reshape(len(weights), len(self.r1), len(self.r2))
        if self.fit and self.training:
            self._fit(filters)
            self.fit = False
        rotated = (self.r1.T @ filters @ self.r2).reshape(weights.shape)
        return weights + self.theta.sin().abs() * (rotated - weights)

    @torch.no_grad()
    def _fit(self, filters: Tensor, rounds: int = 3) -> None:
        """Fit each rotation in turn so that the rotated filters come closer to their signs."""
        for _ in range(rounds):
            signs = (self.r1.T @ filters @ self.r2).sign()
            u, _, vt = torch.linalg.svd(torch.einsum("nij,kj,nlk->il", signs, self.r2, filters))
            self.r1.copy_((u @ vt).T)
            u, _, vt = torch.linalg.svd(torch.einsum("nji,jk,nkl->il", filters, self.r1, signs))
            self.r2.copy_(u @ vt)

    @staticmethod
    def _slope(x: Tensor, t: Tensor) -> Tensor:
        return (math.sqrt(2) * t - t**2 * x.detach().abs()).clamp_min(0)


def _standard(x: Tensor) -> Tensor:
    """Scale each filter, or each image's activations, to mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
    return (x - mean) / std.clamp_min(torch.finfo(std.dtype).tiny)


def recu_tau(epoch: float, epochs: float) -> float:
    """Compute ReCU's quantile for an epoch.

    Example:
        >>> [round(recu_tau(epoch, 600), 3) for epoch in (0, 300, 600)]
        [0.85, 0.903, 0.99]
    """
    span = (TAU[1] - TAU[0]) / (math.e - 1)
    return span * math.exp(epoch / epochs) + TAU[0] - span


def rbnn_slope(epoch: float, epochs: float) -> float:
    """Compute RBNN's t for an epoch; the larger, the steeper the backward pass.

    Example:
        >>> [round(rbnn_slope(epoch, 3), 2) for epoch in (0, 1, 2, 3)]
        [0.01, 0.1, 1.0, 10.0]
    """
    return 10 ** (-2 + 3 * epoch / epochs)


CONVOLUTIONS = {"fp": conv3x3, "recu": ReCUConv2d, "rbnn": RBNNConv2d}


class BinaryBlock(nn.Module):
    """Two convolutions and a shortcut, with hard tanhs."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: str):
        super().__init__()
        conv = CONVOLUTIONS[kind]
        self.conv1, self.bn1 = conv(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels)
        self.act1 = nn.Hardtanh()
        self.conv2, self.bn2, self.act2 = conv(out_channels, out_channels), nn.BatchNorm2d(out_channels), nn.Hardtanh()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            # both are built, so that a seed keeps drawing the same weights for the layers that follow
            projection = [RBNNConv2d(in_channels, out_channels, 1, stride, 0), nn.BatchNorm2d(out_channels)]
            parameter_free = [nn.AvgPool2d(stride), ZeroShortcut(in_channels, out_channels, 1)]
            self.shortcut = nn.Sequential(*(projection if kind == "rbnn" else parameter_free))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(out)) + self.shortcut(x))


class BinaryResNet(CifarNet):
    """A :class:`CifarNet` with batch normalisation before the classifier."""

    def __init__(self, body: dict[str, nn.Module], stages: list[Stage], num_features: int, **head: Any):
        super().__init__(body, stages, num_features, "linear", **head)
        self.bn2 = Norm(num_features)  # the last batch of an epoch may be one image

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        x = self.head_drop(self.bn2(x) if x.ndim == 2 else x)
        return x if pre_logits else self.get_classifier()(x)


def resnet18(kind: str, normalised: bool = False, **head: Any) -> CifarNet:
    """Build a ResNet-18 for 32x32 images; all convolutions but the first are of one kind.

    Args:
        kind: a key of ``CONVOLUTIONS``.
        normalised: let losses read the pooled features after their normalisation instead of before it; the paper does
            not say which.
    """
    body: dict[str, nn.Module] = {"conv1": conv3x3(head.get("in_chans", 3), 64), "bn1": nn.BatchNorm2d(64)}
    stages = add_layers(body, partial(BinaryBlock, kind=kind), (64, 64, 128, 256, 512), [2] * 4, "act2:input")
    net = BinaryResNet(body, stages, 512, **head)
    net.feature_info[-1]["pooled"] = "linear:input" if normalised else "bn2:input"
    if kind != "rbnn":  # whose authors keep PyTorch's initialisation
        init_weights(net, "fan_in")
    return net


class BinaryVGG(CifarNet):
    """A :class:`CifarNet` whose classifier takes the flattened last map."""

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        super().reset_classifier(num_classes, global_pool)
        self.global_pool = nn.Flatten() if global_pool else nn.Identity()


def vgg_small(kind: str, **head: Any) -> CifarNet:
    """Build six convolutions, all but the first of one kind, and a classifier on the last 512 4x4 maps."""
    body: dict[str, nn.Module] = {}
    stages, in_channels = [], head.get("in_chans", 3)
    for i, width in enumerate((128, 128, 256, 256, 512, 512)):
        conv = CONVOLUTIONS[kind] if i else conv3x3
        body[f"conv{i}"] = conv(in_channels, width)
        if i % 2:
            body[f"pool{i}"] = nn.MaxPool2d(2)
            stages.append(Stage(f"act{i}", width, 2 ** (i // 2 + 1), f"act{i}:input"))
        body[f"bn{i}"], body[f"act{i}"] = nn.BatchNorm2d(width), nn.Hardtanh()
        in_channels = width
    net = BinaryVGG(body, stages, 512 * 4 * 4, "fc", **head)
    init_weights(net, classifier_std=0.01)
    net.feature_info[-1]["pooled"] = "act5"  # its mean: a projection of all 8,192 values would take 67 million weights
    return net


for _kind in CONVOLUTIONS:
    _cfg: dict[str, Any] = {"num_classes": 10, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "pool_size": (4, 4)}
    register(f"cifar_resnet18_{_kind}", partial(resnet18, _kind), **_cfg)
    register(f"cifar_vgg_small_{_kind}", partial(vgg_small, _kind), **_cfg)
