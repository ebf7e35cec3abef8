"""Labelled images as the Hub, parquet files and folders hold them, with the columns image and label."""

from pathlib import Path

from datasets import ClassLabel, Dataset, Image, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PIL
from torchvision.datasets import CIFAR10, CIFAR100

from itrd_nlp.errors import UserError, first_line
from itrd_nlp.hub_data import load_splits

LABELS = ("label", "labels", "fine_label", "fine_labels")
FOLDERS = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}  # as torchvision unpacks them
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.DecompressionBombError)  # what Pillow says of a broken file


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
        splits = load_splits(dataset, owner="uoft-cs")
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


def width_of(data: Dataset) -> int:
    """Pixels of a row of the first image; raises :class:`UserError` where it cannot be decoded."""
    try:
        return data[0]["image"].width
    except UNREADABLE as error:
        raise UserError(unreadable(0, error)) from None


def unreadable(place: int, error: Exception) -> str:
    """What is told of an image that cannot be decoded."""
    return f"image {place} cannot be decoded ({first_line(error)}): expected a whole image file; replace or remove it"
