"""Images: data, networks and binary networks; importing it makes the ``cifar_*`` networks known to timm."""

from itrd_nlp.vision import binary, networks

__all__ = ["binary", "networks"]
