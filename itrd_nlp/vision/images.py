"""Labelled images: read from the Hub, from files or folders; small ones in memory, large ones decoded when needed."""

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PIL
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import InterpolationMode, v2

from itrd_nlp.dataset import Epoch, NumberedDataset
from itrd_nlp.errors import UserError, first_line
from itrd_nlp.losses.base import INDEX
from itrd_nlp.plan import digest

SMALL = 64  # pixels of a side up to which images are kept in memory
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.DecompressionBombError)  # what Pillow says of a broken file
PADDING = 4  # pixels on each side of a small image, before it is cropped to its size again
LABELS = ("label", "labels", "fine_label", "fine_labels")
FOLDERS = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}  # as torchvision unpacks them


class Preprocessing(NamedTuple):
    """From uint8 to what a network takes."""

    size: int  # pixels of a side
    mean: tuple[float, ...]  # of each channel, in [0, 1]
    std: tuple[float, ...]
    crop_pct: float = 1.0  # share of the resized image that evaluation looks at
    interpolation: str = "bilinear"


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
            crop = [v2.Resize(round(size / preprocessing.crop_pct), interpolation=how), v2.CenterCrop(size)]
        normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
        self._transform = v2.Compose([v2.RGB(), *crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise])

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
                made.append({"pixel_values": self._transform(image), "labels": label, INDEX: place})
        return made

    def _one_by_one(self, places: Sequence[int]) -> dict[str, list[Any]]:
        """The rows at ``places``, of which one cannot be decoded: it is named."""
        rows = []
        for place in places:
            try:
                rows.append(self.source[place])
            except UNREADABLE as error:
                raise UserError(_unreadable(place, error)) from None
        return {name: [row[name] for row in rows] for name in ("image", "label")}

    def classes(self) -> Tensor:
        return torch.tensor(self.source["label"][:])

    def digest(self) -> str:
        return digest([self.source._fingerprint, self.preprocessing, self.augment])  # hashing ImageNet takes minutes


def load_images(
    dataset: str | None = None, train_file: str | None = None, validation_file: str | None = None
) -> tuple[Dataset | None, Dataset | None]:
    """Labelled images for training and evaluation, with the columns image and label.

    Args:
        dataset: Hub id; its split train, and validation or test.
        train_file: a parquet file with a column of images and one of ``LABELS``; a folder with one folder of images for
            each class; or one that holds what torchvision unpacks for CIFAR. Takes the place of the dataset's split.
        validation_file: the same for evaluation.

    Raises:
        UserError: nothing given, or what was given cannot be read.
    """
    if not (dataset or train_file or validation_file):
        raise UserError("no images given: expected --dataset HUB_ID, or --train_file and --validation_file")
    train = validation = None
    if dataset and not (train_file and validation_file):
        try:
            splits: DatasetDict = load_dataset(dataset)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"dataset {dataset!r}: expected a Hub id or a folder ({first_line(error)})") from None
        names = [name for name in ("validation", "test") if name in splits]
        if "train" not in splits or not names:
            raise UserError(f"dataset {dataset!r} has the splits {sorted(splits)}: expected train, and one to evaluate")
        train, validation = _two_columns(splits["train"], dataset), _two_columns(splits[names[0]], dataset)
    if train_file:
        train = _from_path(train_file, training=True)
    if validation_file:
        validation = _from_path(validation_file, training=False)
    return train, validation


def _from_path(place: str, training: bool) -> Dataset:
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; expected a parquet file, or a folder of images")
    if path.is_file():
        try:
            return _two_columns(Dataset.from_parquet(str(path), keep_in_memory=True), place)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"{place}: expected a parquet file of images ({first_line(error)})") from None
    for name, kind in FOLDERS.items():
        if (path / name).is_dir() or path.name == name:
            root = path if (path / name).is_dir() else path.parent
            try:
                found = kind(str(root), train=training)
            except RuntimeError as error:
                raise UserError(f"{place}: not what torchvision unpacks ({first_line(error)})") from None
            columns = {"image": [PIL.fromarray(pixels) for pixels in found.data], "label": found.targets}
            return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=found.classes))
    try:
        found = load_dataset("imagefolder", data_dir=str(path), split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{place}: expected a folder with one of images for each class ({first_line(error)})") from None
    return _two_columns(found, place)


def _two_columns(data: Dataset, place: str) -> Dataset:
    images = [name for name, kind in data.features.items() if isinstance(kind, Image)]
    labels = [name for name in LABELS if name in data.features]
    if not images or not labels or len(data) == 0:
        raise UserError(
            f"{place} has {len(data)} rows with the columns {', '.join(data.features)}: expected images and one of "
            f"{', '.join(LABELS)}"
        )
    data = data.select_columns([images[0], labels[0]])
    return data.rename_columns({old: new for old, new in ((images[0], "image"), (labels[0], "label")) if old != new})


def class_names(*splits: Dataset | None, classes: int | None = None) -> list[str]:
    """What the labels of some splits are called; where they have no names, numbers: ``classes``, or those seen.

    Raises:
        UserError: labels that are no classes, or other ones in one split than in another.
    """
    given = [split for split in splits if split is not None]
    for kind in (split.features["label"] for split in given):
        if not isinstance(kind, ClassLabel) and kind not in (Value("int64"), Value("int32"), Value("uint8")):
            raise UserError(f"labels are of type {kind}: expected classes or whole numbers")
    named = [list(split.features["label"].names) for split in given if isinstance(split.features["label"], ClassLabel)]
    if named and named[0] != named[-1]:
        odd = sorted({*named[0]} ^ {*named[-1]}) or named[0]
        raise UserError(f"training and evaluation have other classes, e.g. {odd[0]!r}: expected the same in both")
    if named:
        return named[0]
    return [str(i) for i in range(classes or 1 + max(max(split["label"][:]) for split in given))]


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
                raise UserError(_unreadable(place, error)) from None
            height, width = pixels[-1].shape[1:]
            if {height, width} != {preprocessing.size}:
                how = "cropped at random sizes" if augment else "resized"
                print(f"[data] image {place} has {width}x{height} pixels: all are {how} when they are read", flush=True)
                break
        else:
            return MemoryImages(torch.stack(pixels), torch.tensor(source["label"][:]), preprocessing, augment)
    return DecodedImages(source, preprocessing, augment)


def width_of(data: Dataset) -> int:
    """Pixels of a row of the first image; raises :class:`UserError` where it cannot be decoded."""
    try:
        return data[0]["image"].width
    except UNREADABLE as error:
        raise UserError(_unreadable(0, error)) from None


def _unreadable(place: int, error: Exception) -> str:
    return f"image {place} cannot be decoded ({first_line(error)}): expected a whole image file; replace or remove it"


def _pixels(image: dict[str, Any]) -> Tensor:
    """(3, height, width) uint8."""
    opened = PIL.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]))
    return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
