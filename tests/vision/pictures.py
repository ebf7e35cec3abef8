"""Small labelled images for the tests: seeded, no download."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL


def pictures(count: int, classes: int = 10, side: int = 32, seed: int = 0) -> Dataset:
    """Noise around a colour that tells the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.random.default_rng(1).integers(40, 215, (classes, 1, 1, 3))
    pixels = np.clip(colours[labels] + draw.normal(0, 30, (count, side, side, 3)), 0, 255).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {i}" for i in range(classes)])})
    return Dataset.from_dict({"image": [PIL.fromarray(x) for x in pixels], "label": labels.tolist()}, features)


def parquet(path: Path, count: int, image: str = "img", label: str = "label", **options) -> Path:
    """A parquet file of :func:`pictures`, with columns of other names."""
    data = pictures(count, **options)
    data.rename_columns({"image": image, "label": label} if image != "image" else {}).to_parquet(path)
    return path


def png(pixels: np.ndarray) -> bytes:
    """A file's bytes."""
    file = io.BytesIO()
    PIL.fromarray(pixels).save(file, "png")
    return file.getvalue()
