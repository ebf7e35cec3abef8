"""Labelled images as a network takes them: small ones from memory, large ones decoded when they are read."""

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchvision.transforms import v2

from itrd_nlp.losses.base import INDEX
from itrd_nlp.tasks.image_classification.decoding import read_image
from itrd_nlp.utils.datasets import Epoch, NumberedDataset
from itrd_nlp.utils.hashing import digest
from itrd_nlp.vision.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

SMALL = 64  # pixels of a side up to which images are kept in memory
PADDING = 4  # pixels added on each side of a small image before it is cropped to its size again
PRIME = 1_000_003  # mixes seed, epoch and index


class ImageDataset(NumberedDataset):
    """Images with labels. Augmentation depends on the run's seed, the epoch and the image's index alone, so that a
    resumed run repeats it, however batches are cut.

    Args:
        labels: (N,) int64.
        preprocessing: of the network.
        augment: True for training.
    """

    def __init__(self, labels: Tensor, preprocessing: Preprocessing, augment: bool):
        self.labels, self.preprocessing, self.augment = labels, preprocessing, augment
        self.start_epoch(Epoch(0, 1, seed=0, resumed=False))

    def __len__(self) -> int:
        return len(self.labels)

    def start_epoch(self, epoch: Epoch) -> None:
        self.epoch_seed = (PRIME * epoch.seed + epoch.number) % 2**63

    def classes(self) -> Tensor:
        return self.labels


class MemoryImages(ImageDataset):
    """Images of one size, kept as uint8; a batch is augmented and normalised at once.

    Augmentation is that of CIFAR: each image is padded with ``PADDING`` zeros, cropped at random to its size, and
    mirrored or not. (torchvision would draw one crop for all images of a batch.)

    Args:
        pixels: (N, channels, height, width) uint8.
        labels, preprocessing, augment: as of :class:`ImageDataset`.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, preprocessing: Preprocessing, augment: bool):
        self.pixels = pixels
        super().__init__(labels, preprocessing, augment)

    def start_epoch(self, epoch: Epoch) -> None:
        super().start_epoch(epoch)
        draw = torch.Generator().manual_seed(self.epoch_seed)
        self._corners = torch.randint(2 * PADDING + 1, (2, len(self)), generator=draw)
        self._mirrored = torch.randint(2, (len(self),), generator=draw, dtype=torch.bool)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        chosen = torch.as_tensor(indices)
        pixels = self._augmented(chosen) if self.augment else self.pixels[chosen]
        rows = zip(self.preprocessing.scale(pixels), self.labels[chosen], chosen, strict=True)
        return [{"pixel_values": values, "labels": label, INDEX: index} for values, label, index in rows]

    def _augmented(self, indices: Tensor) -> Tensor:
        height, width = self.pixels.shape[2:]
        padded = v2.functional.pad(self.pixels[indices], [PADDING])
        rows = self._corners[0, indices, None] + torch.arange(height)
        columns = torch.arange(width).expand(len(indices), -1)
        columns = torch.where(self._mirrored[indices, None], columns.flip(1), columns)
        columns = columns + self._corners[1, indices, None]
        batch = torch.arange(len(indices))[:, None, None]
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(memoryview(self.pixels.numpy().reshape(-1)))
        content.update(memoryview(self.labels.numpy()))
        return digest([content.hexdigest(), self.preprocessing.description(), self.augment])


class DecodedImages(ImageDataset):
    """Images that are decoded and brought to the network's size when they are read, as for ImageNet.

    Training takes a random crop, mirrored or not; evaluation calls the network's own image processor.
    ``--dataloader_num_workers`` decodes in parallel.

    Args:
        source: with the columns image and label.
        preprocessing, augment: as of :class:`ImageDataset`.
    """

    def __init__(self, source: Dataset, preprocessing: Preprocessing, augment: bool):
        self.source, self._random_crop = source, preprocessing.random_crop()
        super().__init__(torch.tensor(source["label"][:]), preprocessing, augment)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                torch.default_generator.manual_seed((PRIME * self.epoch_seed + index) % 2**63)  # leaves GPUs' alone
                image = read_image(self.source, index)
                if self.augment:
                    values = self.preprocessing.scale(v2.functional.pil_to_tensor(self._random_crop(image)))
                else:
                    values = self.preprocessing(image)
                rows.append({"pixel_values": values, "labels": self.labels[index], INDEX: index})
        return rows

    def digest(self) -> str:
        # "own processor": earlier versions read the processor's fields; the fingerprint: hashing ImageNet takes minutes
        how = ["own processor", self.preprocessing.description()]
        return digest([self.source._fingerprint, how, self.augment])


def prepare(source: Dataset, preprocessing: Preprocessing, augment: bool) -> ImageDataset:
    """Bring images to the form that a network takes.

    Small images that all have the network's size are kept in memory and augmented as CIFAR is. All others are decoded
    when they are read. So are, for evaluation, those that the network's processor resizes or crops at that size.
    """
    if max(preprocessing.size) <= SMALL and (augment or preprocessing.keeps_size):
        pixels = _pixels(source, preprocessing.size, "cropped at random sizes" if augment else "resized")
        if pixels is not None:
            return MemoryImages(pixels, torch.tensor(source["label"][:]), preprocessing, augment)
    return DecodedImages(source, preprocessing, augment)


def _pixels(source: Dataset, size: tuple[int, int], otherwise: str) -> Tensor | None:
    """(N, 3, height, width) uint8 of all images, or None if one has another size."""
    pixels = []
    for index in range(len(source)):
        image = read_image(source, index)
        if (image.height, image.width) != size:
            logger.info(
                f"[data] image {index} has {image.width}x{image.height} pixels: all are {otherwise} when they are read"
            )
            return None
        pixels.append(v2.functional.pil_to_tensor(image))
    return torch.stack(pixels)
