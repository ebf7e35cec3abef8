"""A model's image processor as settings for ``pixels.py``, which runs on numpy and Pillow, without transformers."""

import logging
import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from itrd_nlp.vision.pixels import EXACT, pixels
from itrd_nlp.vision.preprocessing import TIMM_FIELDS, Preprocessing, noise

logger = logging.getLogger(__name__)

# heights and widths of the images of noise that settings and processor are compared on
SHAPES = ((61, 97), (97, 61), (40, 203), (100, 150), (33, 33), (300, 401), (402, 299), (224, 224))
# allowed difference on noise in grey levels of 255, at one value and on average. Between its two passes torchvision's
# bicubic resizing clips where Pillow's does not: up to 22 at a value and 0.4 on average; 1 on smooth images. A wrong
# size, crop or interpolation is off by 5 and more on average.
LARGEST, MEAN = 32.0, 0.5


def steps_of(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """Find the settings with which :func:`itrd_nlp.vision.pixels.pixels` makes the pixels of a model's own processor.

    Settings are never read from a processor's fields alone: those that the fields suggest are tried on images, and the
    closest ones are returned if they are within ``LARGEST`` and ``MEAN`` of the processor.

    Returns:
        The settings, with the largest difference as ``grey_levels``; None if none are close.
    """
    best: dict[str, Any] | None = None
    for steps in _suggested(preprocessing):
        levels = difference(steps, preprocessing)
        if levels is not None and (best is None or levels < best["grey_levels"]):
            best = {**steps, "grey_levels": levels}
        if levels is not None and levels < 0.001:
            break
    return best


def timm_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """Convert the preprocessing to a ``pretrained_cfg`` of timm: size and colours alone if timm cannot do the same."""
    if preprocessing.wraps_timm:
        return {name: preprocessing.processor.data_config[name] for name in TIMM_FIELDS}
    size, steps = preprocessing.size, steps_of(preprocessing)
    config: dict[str, Any] = {"input_size": (3, *size), "mean": preprocessing.mean, "std": preprocessing.std}
    if steps is not None and steps["order"] == [0, 1, 2] and steps["fit"] in ("shortest", "squash"):
        squash = steps["fit"] == "squash"
        resized = steps["size"] if squash else [steps["size"]] * 2
        resizing = {
            "crop_pct": 1.0 if resized == [*size] else min(1.0, size[0] / (resized[0] + 0.25)),  # timm rounds down
            "interpolation": preprocessing.interpolation,
            "crop_mode": "squash" if squash else "center",
        }
        timms = steps_of(Preprocessing.of_timm(config | resizing))
        if timms and difference(timms, preprocessing) is not None:
            return config | resizing
    kind = type(preprocessing.processor).__name__
    logger.warning(f"[model] timm has no transform like {kind}: load images with AutoImageProcessor alone")
    return config


def difference(steps: Mapping[str, Any], preprocessing: Preprocessing) -> float | None:
    """Compute the largest difference in grey levels between settings and a processor; None if it is too large."""
    levels = 255 * np.abs(np.float32(steps["std"]))[:, None, None]
    largest = 0.0
    for shape in (*SHAPES, *_uneven(steps)):
        image = noise(*shape)
        differences = np.abs(pixels(image, steps) - preprocessing(image).numpy()) * levels
        largest = max(largest, float(differences.max()))
        if not (largest <= LARGEST and differences.mean() <= MEAN):  # also refuses NaN
            return None
    return largest


def _uneven(steps: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Shapes whose centre lies between two pixels, which show how the corner of a crop is rounded."""
    if steps["fit"] not in ("shortest", "cover"):
        return []
    height, width = steps["size"] if steps["fit"] == "cover" else [steps["size"]] * 2
    return [(height, width + more) for more in range(4)]


def _suggested(preprocessing: Preprocessing) -> Iterator[dict[str, Any]]:
    """Settings that a processor may correspond to."""
    fill = [0, 0, 0]
    if preprocessing.wraps_timm:
        config = preprocessing.processor.data_config
        scaled = [math.floor(side / config["crop_pct"]) for side in preprocessing.size]
        fits = {"squash": ("squash", scaled), "border": ("contain", scaled)}
        square = ("shortest", scaled[0]) if scaled[0] == scaled[1] else ("cover", scaled)
        resizing = [fits.get(config["crop_mode"], square)]
        if config["crop_mode"] == "border":
            fill = [round(255 * value) for value in config["mean"]]
    else:
        resizing = list(_resizing(preprocessing))
    interpolations = [preprocessing.interpolation]
    if interpolations[0].startswith("nearest"):
        interpolations = ["nearest", EXACT]
    for (fit, size), interpolation, rounding in product(resizing, interpolations, ("even", "down")):
        yield {
            "fit": fit,
            "size": size,
            "interpolation": interpolation,
            "crop": [*preprocessing.size],
            "rounding": rounding,
            "fill": fill,
            "order": [*preprocessing.order],
            "mean": [*preprocessing.mean],
            "std": [*preprocessing.std],
        }


def _resizing(preprocessing: Preprocessing) -> Iterator[tuple[str | None, Any]]:
    """How a processor of transformers may resize: its fields, and what some classes make of them."""
    processor = preprocessing.processor
    size, share = dict(processor.size or {}), getattr(processor, "crop_pct", None)
    if not getattr(processor, "do_resize", True):
        yield None, None
    if size.get("height"):
        yield "squash", [size["height"], size["width"]]
    shortest = size.get("shortest_edge") or size.get("height")
    if shortest:
        yield "shortest", shortest
        yield "shortest", int(256 / 224 * shortest)  # LeViT
        yield "squash", [shortest, shortest]  # ConvNeXT, large
    if shortest and share:
        yield "shortest", int(shortest / share)  # ConvNeXT, PoolFormer
        yield "squash", [int(side / share) for side in preprocessing.size]
