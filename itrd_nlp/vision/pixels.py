"""Pictures as a network takes them, with numpy and Pillow alone; `itrd export` copies this file beside run.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

EXACT = "nearest-exact"  # torch's, which computes positions in fp32: other pixels than Pillow's "nearest" at some sizes


def coloured(image: Image.Image) -> Image.Image:
    """A picture as it is looked at: turned as its EXIF says, RGB, without transparency.

    Of an animation the first frame counts, of grey pictures with 16 bits the upper eight.

    Raises:
        ValueError: a mode that has no colours, or numbers of an unknown range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def pixels(image: Image.Image, how: Mapping[str, Any]) -> np.ndarray:
    """A picture as values, (3, height, width) in fp32.

    Args:
        image: of any size and mode.
        how: ``fit`` (``shortest``, ``squash``, ``cover``, ``contain`` or None: no resizing) and ``size``, the number or
            the (height, width) that it resizes to; ``interpolation``, by Pillow's name or ``EXACT``; ``crop``, the
            (height, width) that is cut out of the middle, and ``rounding`` of its corner, ``even`` or ``down``;
            ``fill``, the colour around a picture that is smaller; ``order`` of the channels; ``mean`` and ``std`` of
            each, in [0, 1].
    """
    image = coloured(image)
    if how["fit"]:
        image = _resize(image, _target(image.height, image.width, how), how["interpolation"])
    values = _middle(np.asarray(image), how)[..., list(how["order"])]
    values = (values.astype(np.float32) / 255 - np.float32(how["mean"])) / np.float32(how["std"])
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _target(height: int, width: int, how: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width to resize to."""
    size = how["size"]
    if how["fit"] == "shortest":  # as torchvision rounds the longer side: down
        return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    if how["fit"] == "squash":
        return size[0], size[1]
    choose = min if how["fit"] == "cover" else max
    ratio = choose(height / size[0], width / size[1])
    return round(height / ratio), round(width / ratio)


def _resize(image: Image.Image, target: tuple[int, int], interpolation: str) -> Image.Image:
    if target == (image.height, image.width):
        return image
    if interpolation == EXACT:
        rows, columns = (
            np.minimum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new), old - 1).astype(
                int
            )
            for new, old in zip(target, (image.height, image.width), strict=True)
        )
        return Image.fromarray(np.asarray(image)[rows[:, None], columns])
    return image.resize(target[::-1], Image.Resampling[interpolation.upper()])


def _middle(values: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """The middle of (height, width, 3), with a border where there is too little of it."""
    for axis, side in enumerate(how["crop"]):
        missing = max(side - values.shape[axis], 0)
        shape = list(values.shape)
        before, after = (
            np.broadcast_to(np.uint8(how["fill"]), [*shape[:axis], count, *shape[axis + 1 :]])
            for count in (missing // 2, missing - missing // 2)
        )
        values = np.concatenate([before, values, after], axis)
        half = (values.shape[axis] - side) / 2
        corner = round(half) if how["rounding"] == "even" else int(half)
        values = values.take(np.arange(corner, corner + side), axis)
    return values
