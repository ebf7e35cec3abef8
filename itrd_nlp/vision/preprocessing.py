"""A model's own image processor: how evaluation, training and a saved student use it."""

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
from transformers import BaseImageProcessor, PreTrainedModel, TimmWrapperImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping

from itrd_nlp.utils.errors import UserError, one_line

SHAPES = ((64, 96), (96, 64), (300, 500))  # heights and widths of images that a processor is tried on
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (40, 130, 210))
TOLERANCE = 1e-5  # relative to the largest value
TIMM_FIELDS = ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")


class Preprocessing:
    """Turns images into a network's input, with the network's own image processor.

    Evaluation calls the processor. Training crops and mirrors images at the processor's size, then scales the colours
    as the processor does; images of one colour show the order of the channels and the mean and deviation of each.

    Args:
        processor: of transformers, or transformers' wrapper of timm's transform.
        source: name of the model, for errors.

    Attributes:
        size: height and width of the processor's output.
        order: the image's channel (0 red, 1 green, 2 blue) that each channel of the output holds.
        mean, std: of each channel of the output, for values in [0, 1].

    Raises:
        UserError: the processor cannot be used: it fails on a single image, returns several images, patches or masks,
            varying sizes, another number of channels than three, or does not scale each channel by itself.
    """

    def __init__(self, processor: BaseImageProcessor, source: str = "the model"):
        self.processor, self.source = processor, source
        sizes = {tuple(self(noise(*shape)).shape[1:]) for shape in SHAPES}
        if len(sizes) > 1:
            raise self._refused(f"makes images of several sizes, e.g. {' and '.join(map(str, sorted(sizes)[:2]))}")
        self.size: tuple[int, int] = sizes.pop()
        self.order, self.mean, self.std = self._scaling()

    @classmethod
    def of_timm(cls, cfg: Mapping[str, Any], source: str = "the model") -> "Preprocessing":
        """Use the transform that timm makes of a ``pretrained_cfg``."""
        return cls(TimmWrapperImageProcessor(pretrained_cfg=dict(cfg)), source)

    @classmethod
    def plain(
        cls, size: int, mean: Any, std: Any, crop_pct: float = 1.0, interpolation: str = "bilinear"
    ) -> "Preprocessing":
        """Resize and take the centre, ``crop_pct`` of the shorter side."""
        values = ((3, size, size), mean, std, crop_pct, interpolation, "center")
        return cls.of_timm(dict(zip(TIMM_FIELDS, values, strict=True)))

    def __call__(self, image: Image.Image) -> Tensor:
        """Process one RGB image; (3, height, width) in fp32."""
        try:
            batch = self.processor(image, return_tensors="pt")
        except Exception as error:  # processors that need more than one image raise errors of any kind
            raise self._refused(f"cannot take one image alone ({one_line(error)})") from None
        if not isinstance(batch, Mapping):
            raise self._refused(f"makes a {type(batch).__name__}, without a name")
        if [*batch] != ["pixel_values"]:
            raise self._refused(f"makes {', '.join(batch)}")
        values = batch["pixel_values"]
        if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise self._refused(f"makes of one image {shape}")
        return values[0].float()

    def scale(self, images: Tensor) -> Tensor:
        """Scale colours as the processor does: (..., 3, height, width) of uint8 to fp32."""
        if self.order != (0, 1, 2):
            images = images[..., list(self.order), :, :]
        values = v2.functional.to_dtype(images, torch.float32, scale=True)
        return v2.functional.normalize(values, list(self.mean), list(self.std))

    @cached_property
    def keeps_size(self) -> bool:
        """Whether the processor only scales the colours of an image that has its size, without resizing or cropping."""
        image = noise(*self.size)
        return _close(self(image), self.scale(v2.functional.pil_to_tensor(image)))

    @property
    def wraps_timm(self) -> bool:
        """Whether the processor wraps timm's transform, which timm's config describes."""
        return isinstance(self.processor, TimmWrapperImageProcessor)

    @property
    def interpolation(self) -> str:
        """Torchvision's name of the interpolation that the processor resizes with."""
        if self.wraps_timm:
            return str(self.processor.data_config["interpolation"])
        resample = getattr(self.processor, "resample", None)
        return str(getattr(pil_torch_interpolation_mapping.get(resample, resample), "value", "bilinear"))

    def random_crop(self) -> v2.Compose:
        """Augmentation of large images: a random part at the network's size, mirrored or not."""
        crop = v2.RandomResizedCrop(self.size, interpolation=InterpolationMode(self.interpolation))
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def description(self) -> Any:
        """JSON values that determine the pixels."""
        if not self.wraps_timm:
            return json.loads(self.processor.to_json_string())
        (_, height, width), *values = (self.processor.data_config[name] for name in TIMM_FIELDS)
        return [height if height == width else [height, width], *values]

    def saver(self, model: PreTrainedModel) -> Any:
        """What to call ``save_pretrained`` of, to save the processor beside a model; None if its config holds it."""
        of_timm = model.base_model_prefix == "timm_model"
        if self.wraps_timm and of_timm:
            return None
        return self if self.wraps_timm or of_timm else self.processor

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the processor beside a model of the other library (timm or transformers).

        `AutoImageProcessor` reads the file, ``processor_config.json``, before it looks at the model's config.
        """
        values = json.loads(self.processor.to_json_string())
        if self.wraps_timm:
            kind = type(self.processor).__name__
            values = {"image_processor_type": kind, "pretrained_cfg": self.processor.data_config}
        path = Path(folder) / "processor_config.json"
        path.write_text(json.dumps({"image_processor": values}, indent=2) + "\n", encoding="utf-8")

    def _scaling(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """Order, mean and deviation of the channels, measured at the centre of images of one colour."""
        height, width = self.size
        images = [Image.new("RGB", SHAPES[0][::-1], colour) for colour in COLOURS]
        values = torch.stack([self(image)[:, height // 2, width // 2] for image in images]).double()
        slopes = (values[1:4] - values[0]) / 255  # (image's channel, output's channel)
        order = tuple(slopes.abs().argmax(0).tolist())
        slope, zero = slopes.gather(0, torch.tensor([order]))[0], values[0]
        expected = zero + slope * torch.tensor(COLOURS, dtype=torch.float64)[:, list(order)]
        if len({*order}) < 3 or (slope == 0).any() or not _close(values, expected):
            raise self._refused("does not scale each colour by itself")
        std = 1 / (255 * slope)
        return order, self._stated("mean", 0 - zero * std), self._stated("std", std)

    def _stated(self, name: str, measured: Tensor) -> tuple[float, ...]:
        """The processor's own value if the measured one differs from it by rounding alone."""
        config = self.processor.data_config if self.wraps_timm else {}
        stated = config.get(name, getattr(self.processor, f"image_{name}", None))
        if not isinstance(stated, list | tuple) or len(stated) != 3:
            stated = measured.tolist()
        equal = np.allclose(stated, measured, rtol=1e-6, atol=1e-7)
        return tuple(map(float, stated if equal else measured))

    def _refused(self, why: str) -> UserError:
        kind = type(self.processor).__name__
        return UserError(
            f"the image processor of {self.source} ({kind}) {why}: expected one that makes of every picture one image "
            "of three channels and one size; take a model whose preprocessor_config.json names such a one"
        )


def _close(values: Tensor, expected: Tensor) -> bool:
    """Whether values are finite and equal but for rounding."""
    tolerance = TOLERANCE * max(1.0, expected.abs().max().item())
    return values.shape == expected.shape and bool(((values - expected).abs() <= tolerance).all())


def noise(height: int, width: int) -> Image.Image:
    """Draw an RGB image of noise, always the same."""
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
