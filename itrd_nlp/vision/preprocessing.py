"""A model's own image processor: what evaluation, training and the saved student take from it."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor, TimmWrapperImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping

from itrd_nlp.utils.errors import UserError, first_line

SHAPES = ((64, 96), (96, 64), (300, 500))  # heights and widths of the images that show what a processor does
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (40, 130, 210))
CLOSE = 1e-5  # of the largest value
TIMM_FIELDS = ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")


class Preprocessing:
    """From an image to what a network takes, by the network's own image processor.

    Evaluation calls the processor. Training crops and mirrors at its size, and then scales colours as it does: by an
    order of the channels and a mean and a deviation of each, which images of one colour show.

    Args:
        processor: of transformers, or transformers' wrapper of timm's transform.
        source: of which model, for errors.

    Attributes:
        size: height and width of what comes out.
        order: which channel (0 red, 1 green, 2 blue) each channel is made of.
        mean, std: of each channel, in [0, 1].
        interpolation: torchvision's name of how it resizes.

    Raises:
        UserError: a processor that cannot serve: it fails on one picture, gives several images, patches, masks, sizes
            that vary or another number of channels than three, or does not scale each channel by itself.
    """

    def __init__(self, processor: BaseImageProcessor, source: str = "the model"):
        self.processor, self.source = processor, source
        shapes = {tuple(self(noise(*shape)).shape[1:]) for shape in SHAPES}
        if len(shapes) > 1:
            raise self._refused(f"makes images of several sizes, e.g. {' and '.join(map(str, sorted(shapes)[:2]))}")
        self.size: tuple[int, int] = shapes.pop()
        self.order, self.mean, self.std = self._scaling()

    @classmethod
    def of_timm(cls, cfg: Mapping[str, Any], source: str = "the model") -> "Preprocessing":
        """The transform that timm makes of a ``pretrained_cfg``."""
        return cls(TimmWrapperImageProcessor(pretrained_cfg=dict(cfg)), source)

    @classmethod
    def plain(
        cls,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
        crop_mode: str = "center",
    ) -> "Preprocessing":
        """The middle of a resized image, ``crop_pct`` of its shorter side; or all of it, squashed (``crop_mode``)."""
        values = ((3, size, size), mean, std, crop_pct, interpolation, crop_mode)
        return cls.of_timm(dict(zip(TIMM_FIELDS, values, strict=True)))

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as the network takes it, (3, height, width) in fp32."""
        try:
            batch = self.processor(image, return_tensors="pt")
        except Exception as error:  # whatever a processor asks for beside one image, or lacks
            raise self._refused(f"cannot take one image alone ({first_line(error)})") from None
        if not isinstance(batch, Mapping):
            raise self._refused(f"makes a {type(batch).__name__}, without a name")
        if [*batch] != ["pixel_values"]:
            raise self._refused(f"makes {', '.join(batch)}")
        values = batch["pixel_values"]
        if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise self._refused(f"makes of one image {found}")
        return values[0].float()

    def scale(self, images: Tensor) -> Tensor:
        """Colours as the network takes them: (..., 3, height, width) of uint8 to fp32."""
        if self.order != (0, 1, 2):
            images = images[..., list(self.order), :, :]
        values = v2.functional.to_dtype(images, torch.float32, scale=True)
        return v2.functional.normalize(values, list(self.mean), list(self.std))

    @cached_property
    def keeps(self) -> bool:
        """Whether an image that has the network's size already is scaled alone, not resized or cropped."""
        image = noise(*self.size)
        return self._equal(self(image), self.scale(to_tensor(image)))

    @property
    def of_timms(self) -> bool:
        """Whether timm's config says all of it."""
        return isinstance(self.processor, TimmWrapperImageProcessor)

    @property
    def interpolation(self) -> str:
        if self.of_timms:
            return str(self.processor.data_config["interpolation"])
        resample = getattr(self.processor, "resample", None)
        if resample is None:
            return "bilinear"
        return str(getattr(pil_torch_interpolation_mapping.get(resample, resample), "value", "bilinear"))

    @property
    def augmented(self) -> list[Any]:
        """Training's view of a large image: a random part of it at the network's size, mirrored or not."""
        how = InterpolationMode(self.interpolation)
        return [v2.RandomResizedCrop(self.size, interpolation=how), v2.RandomHorizontalFlip()]

    def description(self) -> Any:
        """JSON values that decide the pixels."""
        if not self.of_timms:
            return json.loads(self.processor.to_json_string())
        channels, *side = self.processor.data_config["input_size"]
        values = [self.processor.data_config[name] for name in TIMM_FIELDS[1:]]
        return [side[0] if side[0] == side[1] else side, *values]

    def saver(self, timm_model: bool) -> Any:
        """What saves the processor beside a model; None where the model's config holds it.

        Args:
            timm_model: whether the model is one of timm, in transformers' wrapper.
        """
        if self.of_timms and timm_model:
            return None
        return Beside(self) if self.of_timms or timm_model else self.processor

    def _scaling(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """Order, mean and deviation of the channels, from the middle of images of one colour."""
        height, width = self.size
        shape = SHAPES[0]
        seen = [self(Image.new("RGB", shape[::-1], colour))[:, height // 2, width // 2] for colour in COLOURS]
        values = torch.stack(seen).double()
        slopes = (values[1:4] - values[0]) / 255  # (of which channel, what channel)
        order = tuple(slopes.abs().argmax(0).tolist())
        slope, zero = slopes.gather(0, torch.tensor([order]))[0], values[0]
        expected = zero + slope * torch.tensor(COLOURS, dtype=torch.float64)[:, list(order)]
        if len({*order}) < 3 or (slope == 0).any() or not self._equal(values, expected):
            raise self._refused("does not scale each colour by itself")
        std = 1 / (255 * slope)
        mean = 0 - zero * std
        return order, self._stated("mean", mean), self._stated("std", std)

    def _stated(self, name: str, found: Tensor) -> tuple[float, ...]:
        """What the processor states, where that is what was found but for rounding."""
        where = self.processor.data_config if self.of_timms else {}
        stated = where.get(name, getattr(self.processor, f"image_{name}", None))
        if isinstance(stated, list | tuple) and len(stated) == 3 and np.allclose(stated, found, rtol=1e-6, atol=1e-7):
            return tuple(map(float, stated))
        return tuple(found.tolist())

    def _equal(self, values: Tensor, expected: Tensor) -> bool:
        """Whether values are finite and the same but for rounding."""
        tolerance = CLOSE * max(1.0, expected.abs().max().item())
        return values.shape == expected.shape and bool(((values - expected).abs() <= tolerance).all())

    def _refused(self, why: str) -> UserError:
        kind = type(self.processor).__name__
        return UserError(
            f"the image processor of {self.source} ({kind}) {why}: expected one that makes of every picture one image "
            "of three channels and one size; take a model whose preprocessor_config.json names such a one"
        )


class Beside:
    """Saves a processor where `AutoImageProcessor` looks before it reads the model's config.

    Args:
        preprocessing: of a network of the other library than the model that it is saved beside.
    """

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``processor_config.json``."""
        processor = self.preprocessing.processor
        values = json.loads(processor.to_json_string())
        if self.preprocessing.of_timms:
            values = {"image_processor_type": type(processor).__name__, "pretrained_cfg": processor.data_config}
        path = Path(folder) / "processor_config.json"
        path.write_text(json.dumps({"image_processor": values}, indent=2) + "\n", encoding="utf-8")


def noise(height: int, width: int) -> Image.Image:
    """An RGB image of noise, always the same."""
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    """(3, height, width) uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
