"""Labelled images: read from the Hub, from files or folders; small ones in memory, large ones decoded when needed."""

import hashlib
import io
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PIL
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from itrd_nlp.dataset import Epoch, NumberedDataset
from itrd_nlp.errors import UserError
from itrd_nlp.losses.base import INDEX
from itrd_nlp.plan import digest
from itrd_nlp.vision.decoding import UNREADABLE, unreadable

SMALL = 64  # pixels of a side up to which images are kept in memory
PADDING = 4  # pixels on each side of a small image, before it is cropped to its size again


class Preprocessing(NamedTuple):
    """From uint8 to what a network takes."""

    size: int  # pixels of a side
    mean: tuple[float, ...]  # of each channel, in [0, 1]
    std: tuple[float, ...]
    crop_pct: float = 1.0  # share of the resized image that evaluation looks at
    interpolation: str = "bilinear"
    crop_mode: str = "center"  # evaluation keeps the proportions of an image; "squash": it does not


class MemoryImages(NumberedDataset):
    """Images of one size, kept as uint8; a whole batch is augmented and normalised at once.

    Augmentation is the CIFAR one: a random crop of the image with ``PADDING`` zeros around, mirrored or not, each image
    by itself; torchvision would crop all images of a batch alike. What is drawn for an image depends on the seed, the
    epoch and its place alone: a resumed run repeats it, however batches are cut.

    Args:
        pixels: (N, channels, height, width) uint8.
        labels: (N,) int64.
        preprocessing: of the network.
        augment: True for training.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, preprocessing: Preprocessing, augment: bool):
        self.pixels, self.labels, self.preprocessing, self.augment = pixels, labels, preprocessing, augment
        self.start_epoch(Epoch(0, 1, seed=0, resumed=False))

    def __len__(self) -> int:
        return len(self.labels)

    def start_epoch(self, epoch: Epoch) -> None:
        if self.augment:
            draw = torch.Generator().manual_seed((1_000_003 * epoch.seed + epoch.number) % 2**63)
            self._corners = torch.randint(2 * PADDING + 1, (2, len(self)), generator=draw)
            self._mirrored = torch.randint(2, (len(self),), generator=draw, dtype=torch.bool)

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        index = torch.as_tensor(places)
        pixels = self._augmented(index) if self.augment else self.pixels[index]
        pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        pixels = v2.functional.normalize(pixels, list(self.preprocessing.mean), list(self.preprocessing.std))
        rows = zip(pixels, self.labels[index], index, strict=True)
        return [{"pixel_values": x, "labels": label, INDEX: place} for x, label, place in rows]

    def _augmented(self, index: Tensor) -> Tensor:
        height, width = self.pixels.shape[2:]
        padded = v2.functional.pad(self.pixels[index], [PADDING])
        down = self._corners[0, index, None] + torch.arange(height)
        across = torch.arange(width).expand(len(index), -1)
        across = torch.where(self._mirrored[index, None], across.flip(1), across) + self._corners[1, index, None]
        every = torch.arange(len(index))[:, None, None]
        return padded[every, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)

    def classes(self) -> Tensor:
        return self.labels

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.sha256(memoryview(self.pixels.numpy().reshape(-1)))
        hashed.update(memoryview(self.labels.numpy()))
        return digest([hashed.hexdigest(), self.preprocessing, self.augment])


class DecodedImages(NumberedDataset):
    """Images that are decoded, and cropped to the network's size, when they are read: ImageNet's way.

    Training takes a random part of the image, mirrored or not; evaluation the middle. As in :class:`MemoryImages`, what
    is drawn depends on the seed, the epoch and the place alone. ``--dataloader_num_workers`` decodes in parallel.

    Args:
        source: with the columns image and label.
        preprocessing: of the network.
        augment: True for training.
    """

    def __init__(self, source: Dataset, preprocessing: Preprocessing, augment: bool):
        self.source, self.preprocessing, self.augment, self.draw = source, preprocessing, augment, 0
        size, how = preprocessing.size, InterpolationMode(preprocessing.interpolation)
        crop: list[Any] = [v2.RandomResizedCrop(size, interpolation=how), v2.RandomHorizontalFlip()]
        if not augment:
            side = round(size / preprocessing.crop_pct)
            whole = [side, side] if preprocessing.crop_mode == "squash" else side
            crop = [v2.Resize(whole, interpolation=how), v2.CenterCrop(size)]
        normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
        self._transform = v2.Compose([*crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise])

    def __len__(self) -> int:
        return len(self.source)

    def start_epoch(self, epoch: Epoch) -> None:
        self.draw = 1_000_003 * epoch.seed + epoch.number

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        try:
            rows = self.source[list(places)]
        except UNREADABLE:
            rows = self._one_by_one(places)
        made = []
        with torch.random.fork_rng(devices=[]):
            for place, image, label in zip(places, rows["image"], rows["label"], strict=True):
                torch.default_generator.manual_seed((1_000_003 * self.draw + place) % 2**63)  # not a GPU's
                try:
                    image = coloured(image)
                except UNREADABLE as error:
                    raise UserError(unreadable(self.source, place, error)) from None
                made.append({"pixel_values": self._transform(image), "labels": label, INDEX: place})
        return made

    def _one_by_one(self, places: Sequence[int]) -> dict[str, list[Any]]:
        """The rows at ``places``, of which one cannot be decoded: it is named."""
        rows = []
        for place in places:
            try:
                rows.append(self.source[place])
            except UNREADABLE as error:
                raise UserError(unreadable(self.source, place, error)) from None
        return {name: [row[name] for row in rows] for name in ("image", "label")}

    def classes(self) -> Tensor:
        return torch.tensor(self.source["label"][:])

    def digest(self) -> str:
        return digest([self.source._fingerprint, self.preprocessing, self.augment])  # hashing ImageNet takes minutes


def prepare(source: Dataset, preprocessing: Preprocessing, augment: bool) -> NumberedDataset:
    """Images as a network takes them.

    Small ones of the network's size are kept in memory, where all of them are; CIFAR's augmentation is for these alone.
    Others are decoded, and cropped at random sizes to train on, when they are read.
    """
    if preprocessing.size <= SMALL:
        pixels = []
        for place, row in enumerate(source.cast_column("image", Image(decode=False))):
            try:
                pixels.append(_pixels(row["image"]))
            except UNREADABLE as error:
                raise UserError(unreadable(source, place, error)) from None
            height, width = pixels[-1].shape[1:]
            if {height, width} != {preprocessing.size}:
                how = "cropped at random sizes" if augment else "resized"
                print(
                    f"[data] image {place} has {width}x{height} pixels: all are {how} when they are read",
                    file=sys.stderr,
                    flush=True,
                )
                break
        else:
            return MemoryImages(torch.stack(pixels), torch.tensor(source["label"][:]), preprocessing, augment)
    return DecodedImages(source, preprocessing, augment)


def _pixels(image: dict[str, Any]) -> Tensor:
    """(3, height, width) uint8."""
    opened = PIL.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]))
    return torch.from_numpy(np.array(coloured(opened))).permute(2, 0, 1)


def coloured(image: PIL.Image) -> PIL.Image:
    """An image as RGB; of grey ones with 16 bits the upper eight count."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):
        image = PIL.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
