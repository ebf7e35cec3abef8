"""What the networks for 32x32 images share: named modules in a row, under timm's contract of a model."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of CIFAR-100
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Stage(NamedTuple):
    """Where a network's features are read, as names for ``ForwardHooks``."""

    module: str
    channels: int
    reduction: int  # of the image's sides
    preact: str  # the same features before their activation


class CifarNet(nn.Module):
    """Named modules in a row, pooling, and one linear classifier.

    Args:
        body: the modules that a (n, channels, 32, 32) batch passes one after the other.
        stages: where features are read.
        num_features: channels of the last module.
        classifier: name of the linear classifier.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the images, which ``body`` was made for.
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
        self.feature_info = [
            {"num_chs": s.channels, "reduction": s.reduction, "module": s.module, "preact": s.preact} for s in stages
        ]
        self.body = tuple(body)
        for name, module in body.items():
            self.add_module(name, module)
        self.classifier_name = classifier
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """A new classifier, or none where ``num_classes`` is 0."""
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        linear: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        name, _, inner = self.classifier_name.partition(".")
        self.add_module(name, nn.Sequential(linear) if inner else linear)

    def get_classifier(self, name_only: bool = False) -> Any:
        """The linear classifier, in a sequence of one where its name says so; or its name."""
        return self.classifier_name if name_only else self.get_submodule(self.classifier_name.partition(".")[0])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Names of the parameters that belong together, for rates that decay with the depth."""
        stem, *blocks = self.body
        return {"stem": rf"^{stem}\.", "blocks": [(rf"^{name}\.", (i,)) for i, name in enumerate(blocks)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) features, unpooled."""
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


def register(
    module: str, name: str, net: Callable[..., CifarNet], classifier: str = "fc", first: str = "conv1", **cfg: Any
) -> None:
    """Make a network known to timm.

    Args:
        module: ``__name__`` of the file that defines it.
        name: what ``timm.create_model`` calls it.
        net: makes it; takes ``in_chans`` and the options of :class:`CifarNet` that are named there by keyword.
        classifier, first: names of its last and first layer with weights.
        cfg: what differs from the usual preprocessing.
    """
    usual = {
        "url": "", "num_classes": 100, "input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": CIFAR_MEAN, "std": CIFAR_STD, "first_conv": first, "classifier": classifier,
    }  # fmt: skip

    def make(device: Any = None, dtype: Any = None, **options: Any) -> CifarNet:
        with torch.device(device or torch.get_default_device()):
            return net(**options).to(dtype=dtype)

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        reading = {"out_indices": tuple(range(len(read))), "flatten_sequential": any("." in module for module in read)}
        return build_model_with_cfg(make, name, pretrained, feature_cfg=reading, **options)

    with torch.device("meta"):
        read = [str(info["module"]) for info in net().feature_info]
    entry.__name__, entry.__module__ = name, module
    known = sys.modules[module]
    vars(known).setdefault("default_cfgs", {}).update(generate_default_cfgs({name: {**usual, **cfg}}))
    register_model(entry)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False, **options)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **options)


def init_normal(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (k k out)), biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0, (2.0 / fan) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_kaiming(model: nn.Module, mode: str) -> None:
    """Convolutions from N(0, 2 / fan) (He et al. 2015); ``mode``: fan_in or fan_out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")


def init_classifier(model: CifarNet) -> None:
    """The classifier, where there is one, from N(0, 0.01^2), biases 0."""
    if model.num_classes:
        classifier = model.get_submodule(model.get_classifier(name_only=True))
        nn.init.normal_(classifier.weight, 0, 0.01)
        nn.init.zeros_(classifier.bias)
