"""Labelled images: read from the Hub, from files or folders; small ones in memory, large ones decoded when needed."""

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as PIL
from torch import Tensor
from torchvision.transforms import v2

from itrd_nlp.losses.base import INDEX
from itrd_nlp.tasks.image_classification.decoding import UNREADABLE, opened, undecoded, unreadable
from itrd_nlp.utils.datasets import Epoch, NumberedDataset
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import digest
from itrd_nlp.vision.pixels import coloured
from itrd_nlp.vision.preprocessing import Preprocessing, to_tensor

logger = logging.getLogger(__name__)

SMALL = 64  # pixels of a side up to which images are kept in memory
PADDING = 4  # pixels on each side of a small image, before it is cropped to its size again


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
        rows = zip(self.preprocessing.scale(pixels), self.labels[index], index, strict=True)
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
        return digest([hashed.hexdigest(), self.preprocessing.description(), self.augment])


class DecodedImages(NumberedDataset):
    """Images that are decoded, and made as large as the network takes them, when they are read: ImageNet's way.

    Training takes a random part of the image, mirrored or not; evaluation what the network's own processor makes of it.
    As in :class:`MemoryImages`, what is drawn depends on the seed, the epoch and the place alone.
    ``--dataloader_num_workers`` decodes in parallel.

    Args:
        source: with the columns image and label.
        preprocessing: of the network.
        augment: True for training.
    """

    def __init__(self, source: Dataset, preprocessing: Preprocessing, augment: bool):
        self.source, self.preprocessing, self.augment, self.draw = source, preprocessing, augment, 0
        self._augmented = v2.Compose(preprocessing.augmented)

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
                made.append({"pixel_values": self._seen(image), "labels": label, INDEX: place})
        return made

    def _seen(self, image: PIL.Image) -> Tensor:
        """(3, height, width) of an RGB image, by the network's own processor or augmented."""
        return (
            self.preprocessing.scale(to_tensor(self._augmented(image))) if self.augment else self.preprocessing(image)
        )

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
        how = ["own processor", self.preprocessing.description()]  # not fields of it, by which earlier versions read it
        return digest([self.source._fingerprint, how, self.augment])  # hashing the images of ImageNet takes minutes


def prepare(source: Dataset, preprocessing: Preprocessing, augment: bool) -> NumberedDataset:
    """Images as a network takes them.

    Small ones of the network's size are kept in memory, where all of them are; CIFAR's augmentation is for these alone.
    Others are decoded, and cropped at random sizes to train on, when they are read; so are those that the network's
    processor resizes or crops although they have its size, for evaluation.
    """
    if max(preprocessing.size) <= SMALL and (augment or preprocessing.keeps):
        pixels = []
        for place, row in enumerate(undecoded(source)):
            try:
                pixels.append(to_tensor(coloured(opened(row["image"]))))
            except UNREADABLE as error:
                raise UserError(unreadable(source, place, error)) from None
            height, width = pixels[-1].shape[1:]
            if (height, width) != preprocessing.size:
                how = "cropped at random sizes" if augment else "resized"
                logger.info(
                    f"[data] image {place} has {width}x{height} pixels: all are {how} when they are read",
                )
                break
        else:
            return MemoryImages(torch.stack(pixels), torch.tensor(source["label"][:]), preprocessing, augment)
    return DecodedImages(source, preprocessing, augment)
