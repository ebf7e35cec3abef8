"""Labelled images as the Hub, parquet files and folders hold them, with the columns image and label."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value
from datasets.exceptions import DatasetsError
from PIL import Image as PIL
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from itrd_nlp.durable import file_digest
from itrd_nlp.errors import UserError, first_line
from itrd_nlp.hub_data import load_splits

LABELS = ("label", "labels", "fine_label", "fine_labels")
SPLITS = {"train", "training", "val", "valid", "validation", "test"}  # what folders of whole splits are called
FOLDERS = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}  # as torchvision unpacks them
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.DecompressionBombError)  # what Pillow says of a broken file


def load_images(
    dataset: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    config: str | None = None,
    label_column: str | None = None,
) -> tuple[Dataset | None, Dataset | None]:
    """Labelled images for training and evaluation, with the columns image and label.

    Args:
        dataset: Hub id; its split train, and validation or test.
        train_file: a parquet file with a column of images and one of labels; a folder with one folder of images for
            each class; or one that holds what torchvision unpacks for CIFAR. Takes the place of the dataset's split.
        validation_file: the same for evaluation.
        config: which of the data sets that the Hub's holds.
        label_column: of parquet files and the Hub; the first of ``LABELS`` that is there by default.

    Raises:
        UserError: nothing given, or what was given cannot be read.
    """
    if not (dataset or train_file or validation_file):
        raise UserError("no images given: expected --dataset HUB_ID, or --train_file and --validation_file")
    train = validation = None
    if dataset and not (train_file and validation_file):
        splits = load_splits(dataset, config, owner="uoft-cs")
        names = [name for name in ("validation", "test") if name in splits]
        if not (train_file or "train" in splits) or not (validation_file or names):
            raise UserError(f"dataset {dataset!r} has the splits {sorted(splits)}: expected train, and one to evaluate")
        train = None if train_file else _two_columns(splits["train"], dataset, label_column)
        validation = None if validation_file else _two_columns(splits[names[0]], dataset, label_column)
    if train_file:
        train = _from_path(train_file, label_column, training=True)
    if validation_file:
        validation = _from_path(validation_file, label_column, training=False)
    return train, validation


def _from_path(place: str, label_column: str | None, training: bool) -> Dataset:
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; expected a parquet file, or a folder of images")
    if path.is_file():
        try:
            data = Dataset.from_parquet(str(path), keep_in_memory=True)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"{place}: expected a parquet file of images ({first_line(error)})") from None
        data._fingerprint = file_digest(path)  # datasets' own depends on where the file lies and when it was written
        return _two_columns(data, place, label_column)
    for name, kind in FOLDERS.items():
        if (path / name).is_dir() or path.name == name:
            root = path if (path / name).is_dir() else path.parent
            try:
                found = kind(str(root), train=training)
            except RuntimeError as error:
                raise UserError(f"{place}: not what torchvision unpacks ({first_line(error)})") from None
            columns = {"image": [PIL.fromarray(pixels) for pixels in found.data], "label": found.targets}
            return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=found.classes))
    for inner in path.iterdir():
        if inner.name in SPLITS and inner.is_dir() and any(deeper.is_dir() for deeper in inner.iterdir()):
            raise UserError(f"{place} holds the split {inner.name}, with folders in it: expected {inner} itself")
    try:
        found = ImageFolder(str(path))
    except OSError as error:
        raise UserError(f"{place}: expected a folder with one of images for each class ({first_line(error)})") from None
    columns = {"image": [file for file, _ in found.samples], "label": found.targets}
    return (
        Dataset.from_dict(columns).cast_column("image", Image()).cast_column("label", ClassLabel(names=found.classes))
    )


def _two_columns(data: Dataset, place: str, label_column: str | None) -> Dataset:
    for name, kind in data.features.items():
        if isinstance(kind, dict) and {*kind} == {"bytes", "path"}:  # images, written without datasets
            data = data.cast_column(name, Image())
    images = [name for name, kind in data.features.items() if isinstance(kind, Image)]
    labels = [name for name in ([label_column] if label_column else LABELS) if name in data.features]
    if not images or not labels or len(data) == 0:
        expected = label_column or f"one of {', '.join(LABELS)}; see --label_column"
        raise UserError(
            f"{place} has {len(data)} rows with the columns {', '.join(data.features)}: expected images and {expected}"
        )
    data = data.select_columns([images[0], labels[0]])
    data = data.rename_columns({old: new for old, new in ((images[0], "image"), (labels[0], "label")) if old != new})
    for name in data.column_names:
        if nulls := np.flatnonzero(data.data.column(name).is_null().to_numpy()).tolist():
            raise UserError(f"{place}, row {nulls[0]}: no {name}; expected one in every row, {len(nulls)} have none")
    kind = data.features["label"]
    if kind == Value("string"):
        return data.class_encode_column("label")
    return data.cast_column("label", Value("int64")) if kind in (Value("int8"), Value("int16")) else data


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


def width_of(data: Dataset) -> int:
    """Pixels of a row of the first image; raises :class:`UserError` where it cannot be decoded."""
    try:
        return data[0]["image"].width
    except UNREADABLE as error:
        raise UserError(unreadable(0, error)) from None


def unreadable(place: int, error: Exception) -> str:
    """What is told of an image that cannot be decoded."""
    return f"image {place} cannot be decoded ({first_line(error)}): expected a whole image file; replace or remove it"
