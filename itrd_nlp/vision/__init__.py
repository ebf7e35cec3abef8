"""Images: data, networks and binary networks; importing it makes the ``cifar_*`` networks known to timm."""

from itrd_nlp.vision import networks

__all__ = ["networks"]
