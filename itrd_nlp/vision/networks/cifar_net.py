"""What the networks for 32x32 images share: a base class for timm, layers and initialisation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of CIFAR-100
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Stage(NamedTuple):
    """A row of timm's ``feature_info``; modules are named as for ``ForwardHooks``."""

    module: str  # whose output is the stage's features
    num_chs: int
    reduction: int  # sides of the image over sides of the features
    preact: str  # the same features before their activation


class CifarNet(nn.Module):
    """A chain of named modules, pooling, and one linear classifier.

    Args:
        body: name -> module; applied to a (n, channels, 32, 32) batch in this order.
        stages: where losses may read features.
        num_features: channels of the last module's output.
        classifier: name of the linear classifier.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images that ``body`` takes.
        global_pool: ``"avg"``, another of timm's, or ``""`` for none.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        body: Mapping[str, nn.Module],
        stages: Sequence[Stage],
        num_features: int,
        classifier: str = "fc",
        *,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        self.feature_info = [stage._asdict() for stage in stages]
        self.body = tuple(body)
        for name, module in body.items():
            self.add_module(name, module)
        self.classifier_name = classifier
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the classifier; ``num_classes`` 0 removes it."""
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        linear: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        name, _, inner = self.classifier_name.partition(".")
        self.add_module(name, nn.Sequential(linear) if inner else linear)

    def get_classifier(self, name_only: bool = False) -> Any:
        """The linear classifier (in an ``nn.Sequential`` if its name has two parts), or its name."""
        return self.classifier_name if name_only else self.get_submodule(self.classifier_name.partition(".")[0])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names for timm's layer-wise learning-rate decay."""
        stem, *blocks = self.body
        return {"stem": rf"^{stem}\.", "blocks": [(rf"^{name}\.", (i,)) for i, name in enumerate(blocks)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the (n, channels, height, width) features before pooling."""
        modules = [self.get_submodule(name) for name in self.body]
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(modules, x)
        for module in modules:
            x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


default_cfgs: dict[str, Any] = {}  # of the registered networks, by name: timm looks for it where they are defined


def register(name: str, net: Callable[..., CifarNet], **cfg: Any) -> None:
    """Register a network with timm.

    Args:
        name: the name for ``timm.create_model``.
        net: builds it; takes the keyword-only options of :class:`CifarNet`.
        cfg: fields of ``pretrained_cfg`` that differ from CIFAR-100's.
    """
    with torch.device("meta"):
        network = net()
    convolutions = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    defaults = {
        "url": "", "num_classes": 100, "input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": CIFAR_MEAN, "std": CIFAR_STD, "first_conv": convolutions[0], "classifier": network.classifier_name,
    }  # fmt: skip
    stages = [str(info["module"]) for info in network.feature_info]
    feature_cfg = {"out_indices": tuple(range(len(stages))), "flatten_sequential": any("." in name for name in stages)}

    def build(device: Any = None, dtype: Any = None, **options: Any) -> CifarNet:
        with torch.device(device or torch.get_default_device()):
            return net(**options).to(dtype=dtype)

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(build, name, pretrained, feature_cfg=feature_cfg, **options)

    entry.__name__ = name
    default_cfgs.update(generate_default_cfgs({name: {**defaults, **cfg}}))
    register_model(entry)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A 3x3 convolution without bias; it keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False, **options)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **options)


def stem(convolution: nn.Conv2d) -> dict[str, nn.Module]:
    """The first modules of a body: a convolution of the image, batch normalisation and a ReLU."""
    return {"conv1": convolution, "bn1": nn.BatchNorm2d(convolution.out_channels), "relu": nn.ReLU()}


def repeat(block: Callable[..., nn.Module], count: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Chain ``count`` blocks, network of input channels, output channels and stride; the first has the stride."""
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *[block(out_channels, out_channels, 1) for _ in range(count - 1)])


def add_layers(
    body: dict[str, nn.Module],
    block: Callable[..., nn.Module],
    widths: Sequence[int],
    counts: Sequence[int],
    preact: str,
    stride: int = 1,
) -> list[Stage]:
    """Append ``layer1``, ``layer2``, ... to a body, each a group of blocks that halves the sides.

    Args:
        body: the modules before them.
        block: takes input channels, output channels and stride.
        widths: input channels of the first group, then output channels of each.
        counts: blocks in each group.
        preact: where a group's last block holds its features before their activation.
        stride: of the first group, 1 to keep the size.

    Returns:
        A stage for each group.
    """
    stages, reduction = [], 1
    for i, count in enumerate(counts, 1):
        reduction *= stride
        body[f"layer{i}"] = repeat(block, count, widths[i - 1], widths[i], stride)
        stages.append(Stage(f"layer{i}", widths[i], reduction, f"layer{i}.{count - 1}.{preact}"))
        stride = 2
    return stages


def init_weights(model: CifarNet, mode: str = "fan_out", classifier_std: float | None = None) -> None:
    """Draw convolutions from N(0, 2 / fan) (He et al. 2015) and set their biases to 0.

    Args:
        mode: ``fan_in`` or ``fan_out``.
        classifier_std: standard deviation to draw the classifier with, biases 0; None keeps PyTorch's initialisation.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.num_classes and classifier_std is not None:
        classifier = model.get_submodule(model.get_classifier(name_only=True))
        nn.init.normal_(classifier.weight, 0, classifier_std)
        nn.init.zeros_(classifier.bias)
