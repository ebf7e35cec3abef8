"""Image models; importing this registers the ``cifar_*`` networks with timm."""

from itrd_nlp.vision import binary, networks

__all__ = ["binary", "networks"]
