"""Prepare images for a network with numpy and Pillow alone; `itrd export` copies this file beside run.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

EXACT = "nearest-exact"  # torch's: it computes positions in fp32, so at some sizes it takes other pixels than Pillow's


def coloured(image: Image.Image) -> Image.Image:
    """Turn a picture upright by its EXIF orientation and convert it to RGB, without transparency.

    Takes the first frame of an animation, and the upper 8 bits of grey pictures with 16.

    Raises:
        ValueError: a mode without colours, or numbers of an unknown range.
    """
    check_range(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def check_range(image: Image.Image) -> None:
    """Raise :class:`ValueError` for numbers of an unknown range, of which no one knows what is white."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):  # a PGM of that mode has 16 bits
        kind = "floating-point numbers" if image.mode == "F" else "numbers of 32 bits"
        raise ValueError(f"its pixels are {kind} of an unknown range")


def pixels(image: Image.Image, how: Mapping[str, Any]) -> np.ndarray:
    """Convert a picture to (3, height, width) in fp32.

    Args:
        image: of any size and mode.
        how: ``fit`` (``shortest``, ``squash``, ``cover``, ``contain``, or None for no resizing) and ``size``, the
            number or (height, width) to resize to; ``interpolation``, by Pillow's name or ``EXACT``; ``crop``, the
            (height, width) to cut out of the centre, and ``rounding`` of its corner, ``even`` or ``down``; ``fill``,
            the colour around a smaller picture; ``order`` of the channels; ``mean`` and ``std`` of each, in [0, 1].
    """
    image = coloured(image)
    if how["fit"]:
        image = _resize(image, _target(image.height, image.width, how), how["interpolation"])
    values = np.asarray(_crop(image, how))[..., list(how["order"])]
    values = (values.astype(np.float32) / 255 - np.float32(how["mean"])) / np.float32(how["std"])
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _target(height: int, width: int, how: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width to resize to."""
    size = how["size"]
    if how["fit"] == "shortest":  # torchvision rounds the longer side down
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
        rows = _nearest(image.height, target[0])
        columns = _nearest(image.width, target[1])
        return Image.fromarray(np.asarray(image)[rows[:, None], columns])
    return image.resize(target[::-1], Image.Resampling[interpolation.upper()])


def _nearest(old: int, new: int) -> np.ndarray:
    """Indices of the pixels along a side that torch's ``nearest-exact`` takes."""
    centres = np.arange(new, dtype=np.float32) + np.float32(0.5)
    return np.minimum(centres * np.float32(old / new), old - 1).astype(int)


def _crop(image: Image.Image, how: Mapping[str, Any]) -> Image.Image:
    """Cut out the centre, with a border if the image is smaller."""
    height, width = how["crop"]
    rounded = round if how["rounding"] == "even" else int
    left, top = (
        (side - length) // 2 if length < side else -rounded((length - side) / 2)
        for side, length in ((width, image.width), (height, image.height))
    )
    canvas = Image.new("RGB", (width, height), tuple(how["fill"]))
    canvas.paste(image, (left, top))
    return canvas
