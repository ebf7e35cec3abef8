"""A model's image processor as steps that numpy and Pillow take, for where transformers is not installed."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from itrd_nlp.vision.pixels import EXACT, pixels
from itrd_nlp.vision.preprocessing import TIMM_FIELDS, Preprocessing, noise

# heights and widths of the images of noise that steps are compared on, small and large
SHAPES = ((61, 97), (97, 61), (40, 203), (100, 150), (33, 33), (300, 401), (402, 299), (224, 224))
# grey levels of 255 that steps may be off on noise, at one value and on average. Bicubic resizing of torchvision clips
# between its two passes at other places than Pillow's, by up to 22 at a value and 0.4 on average; smooth images by 1.
# A wrong size, crop or interpolation is off by 5 and more on average.
LARGEST, MEAN = 32.0, 0.5


def steps_of(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """What :func:`itrd_nlp.vision.pixels.pixels` takes to make the pixels of a model's own processor.

    Steps are never read off a processor's fields alone: those that its fields suggest are tried on images, and the
    nearest are taken where they are within ``LARGEST`` and ``MEAN`` of the processor.

    Returns:
        The steps, with ``grey_levels``: the largest difference found; None where none come near.
    """
    best: dict[str, Any] | None = None
    for how in _suggested(preprocessing):
        found = difference(how, preprocessing)
        if found is not None and (best is None or found < best["grey_levels"]):
            best = {**how, "grey_levels": found}
        if found is not None and found < 0.001:
            break
    return best


def timm_config(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """The preprocessing as timm's ``pretrained_cfg``; None where timm has no transform that comes as near as steps."""
    if preprocessing.of_timms:
        return {name: preprocessing.processor.data_config[name] for name in TIMM_FIELDS}
    how = steps_of(preprocessing)
    if how is None or how["order"] != [0, 1, 2] or how["fit"] not in ("shortest", "squash"):
        return None
    resized, side = how["size"] if how["fit"] == "squash" else [how["size"]] * 2, preprocessing.size
    values = [(3, *side), preprocessing.mean, preprocessing.std, min(1.0, side[0] / (resized[0] + 0.25))]
    values += [preprocessing.interpolation, "squash" if how["fit"] == "squash" else "center"]
    config = dict(zip(TIMM_FIELDS, values, strict=True))
    if resized == [*side]:
        config["crop_pct"] = 1.0
    twin = steps_of(Preprocessing.of_timm(config))
    return config if twin and difference(twin, preprocessing) is not None else None


def difference(how: Mapping[str, Any], preprocessing: Preprocessing) -> float | None:
    """The largest difference in grey levels between steps and a processor; None where they are too far apart."""
    levels = 255 * np.abs(np.float32(how["std"]))[:, None, None]
    largest = 0.0
    for shape in (*SHAPES, *_uneven(how)):
        image = noise(*shape)
        apart = np.abs(pixels(image, how) - preprocessing(image).numpy()) * levels
        largest = max(largest, float(apart.max()))
        if not (largest <= LARGEST and apart.mean() <= MEAN):  # also where it is NaN
            return None
    return largest


def _uneven(how: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Shapes whose middle lies between pixels, in both ways: they tell how the corner of a crop is rounded."""
    if how["fit"] not in ("shortest", "cover"):
        return []
    height, width = how["size"] if how["fit"] == "cover" else [how["size"]] * 2
    return [(height, width + more) for more in range(4)]


def _suggested(preprocessing: Preprocessing) -> Iterator[dict[str, Any]]:
    """Steps that a processor may take."""
    fill = (0, 0, 0)
    if preprocessing.of_timms:
        config = preprocessing.processor.data_config
        scaled = [math.floor(side / config["crop_pct"]) for side in preprocessing.size]
        fits = {"squash": ("squash", scaled), "border": ("contain", scaled)}
        square = ("shortest", scaled[0]) if scaled[0] == scaled[1] else ("cover", scaled)
        resizing = [fits.get(config["crop_mode"], square)]
        if config["crop_mode"] == "border":
            fill = tuple(round(255 * value) for value in config["mean"])
    else:
        resizing = list(_resizing(preprocessing))
    names = [preprocessing.interpolation]
    if names[0].startswith("nearest"):
        names = ["nearest", EXACT]
    for (fit, size), name, rounding in product(resizing, names, ("even", "down")):
        yield {
            **{"fit": fit, "size": size, "interpolation": name, "crop": list(preprocessing.size)},
            **{"rounding": rounding, "fill": list(fill), "order": list(preprocessing.order)},
            **{"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        }


def _resizing(preprocessing: Preprocessing) -> Iterator[tuple[str | None, Any]]:
    """How a processor of transformers may resize, by its fields and what classes make of them."""
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
