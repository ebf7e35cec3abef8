"""Labelled images as the Hub, parquet files and folders hold them, with the columns image and label."""

from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image, NamedSplit, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PIL
from torchvision.datasets import CIFAR10, CIFAR100

from itrd_nlp.tasks.image_classification.decoding import undecoded
from itrd_nlp.tasks.image_classification.folders import (
    ARCHIVES,
    class_folders,
    has_metadata,
    has_splits,
    has_tables,
    images_below,
    is_of_images,
    split_root,
    unpacked,
)
from itrd_nlp.tasks.tabular import load_splits, read_folder, read_table
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.hashing import file_digest

IMAGES = ("image", "img")  # taken before other columns of images, such as masks
LABELS = ("label", "labels", "fine_label", "fine_labels")
CIFAR = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}  # as torchvision unpacks them


def load_images(
    dataset: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    config: str | None = None,
    label_column: str | None = None,
) -> tuple[Dataset | None, Dataset | None]:
    """Labelled images for training and evaluation, with the columns image and label.

    A label is a number of a ``ClassLabel`` where the data set declares its classes, a whole number where it has
    numbers alone, and text where it has names alone, as folders do: :mod:`itrd_nlp.vision.classes` makes classes of
    them. ``info.description`` says where a split lies and what of it was skipped.

    Args:
        dataset: Hub id, or a folder with one for each split; its split train, and validation or test.
        train_file: a parquet file with a column of images and one of labels; a folder with one folder of images for
            each class, or with metadata.csv; what torchvision unpacks for CIFAR; a folder that ``save_to_disk`` wrote;
            or any of these folders as .zip or .tar.gz. Takes the place of the dataset's split.
        validation_file: the same for evaluation.
        config: which of the data sets that the Hub's holds.
        label_column: of parquet files and the Hub; the first of ``LABELS`` that is there by default.

    Raises:
        UserError: nothing given, or what was given cannot be read.
    """
    if not (dataset or train_file or validation_file):
        raise UserError("no images given: expected --dataset HUB_ID, or --train_file and --validation_file")
    if dataset and is_of_images(Path(dataset)):  # `datasets` would guess splits from the names of classes
        if not has_splits(Path(dataset)) and not (train_file and validation_file):
            raise UserError(
                f"dataset '{dataset}' holds no splits: expected the folders train and validation in it, or "
                "--train_file and --validation_file instead"
            )
        train_file, validation_file, dataset = train_file or dataset, validation_file or dataset, None
    train = validation = None
    if dataset and not (train_file and validation_file):
        splits = load_splits(dataset, config, owner="uoft-cs")
        names = [name for name in ("validation", "test") if name in splits]
        if not (train_file or "train" in splits) or not (validation_file or names):
            raise UserError(f"dataset {dataset!r} has the splits {sorted(splits)}: expected train, and one to evaluate")
        train = None if train_file else _two_columns(splits["train"], f"{dataset} train", label_column)
        if not validation_file:
            validation = _two_columns(splits[names[0]], f"{dataset} {names[0]}", label_column)
    if train_file:
        train = _from_path(train_file, label_column, "train")
    if validation_file:
        validation = _from_path(validation_file, label_column, "validation")
    return train, validation


def _from_path(place: str, label_column: str | None, split: str) -> Dataset:
    """The split, ``train`` or ``validation``, of what one argument names."""
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; expected a parquet file, or a folder of images")
    if path.is_file() and not path.name.lower().endswith(ARCHIVES):
        data = read_table(place, split, "images").dataset
        if data is None:
            raise UserError(f"{place} holds no images: expected a parquet file, or a folder of images")
        data._fingerprint = file_digest(path)  # datasets' own depends on where the file lies and when it was written
        return _two_columns(data, place, label_column, split)
    folder = unpacked(path) if path.is_file() else path
    for root in (folder, folder.parent):
        for name, kind in CIFAR.items():
            if (root / name).is_dir() and (root == folder or folder.name == name):
                return _cifar(kind, root, place, split)
    if has_tables(folder):
        data = read_folder(str(folder), split).dataset
        if data is None:
            raise UserError(f"{place} holds no images: expected parquet files, or folders of images")
        return _two_columns(data, place, label_column, split)
    root = split_root(folder, split == "train")
    shown = (path / root.relative_to(folder)).as_posix()
    if has_metadata(root):
        data = _two_columns(_with_metadata(root, shown, split), shown, label_column, split)
        listed = {Path(row["image"]["path"]).absolute() for row in undecoded(data) if row["image"]["path"]}
        if without := sum(image.absolute() not in listed for image in images_below(root)):
            data.info.description += f" (skipped: {without:,} without a row of metadata)"
        return data
    found = class_folders(root)
    data = Dataset.from_dict({"image": found.files, "label": found.classes}, split=split).cast_column("image", Image())
    data.info.description = f"{shown}{found.skipped}"
    return data


def _cifar(kind: Any, root: Path, place: str, split: str) -> Dataset:
    """What torchvision unpacks for CIFAR-10 and CIFAR-100."""
    try:
        found = kind(str(root), train=split == "train")
    except RuntimeError as error:
        raise UserError(f"{place}: not what torchvision unpacks ({first_line(error)})") from None
    columns = {"image": [PIL.fromarray(pixels) for pixels in found.data], "label": found.targets}
    data = Dataset.from_dict(columns, split=split)
    data = data.cast_column("label", ClassLabel(names=found.classes))
    data.info.description = place
    return data


def _with_metadata(root: Path, place: str, split: str) -> Dataset:
    """Images with metadata.csv, .jsonl or .parquet beside them, which names files and labels."""
    try:
        return load_dataset("imagefolder", data_files={split: [f"{escape(str(root))}/**"]}, split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{place}: metadata beside the images cannot be read ({first_line(cause)}): expected the columns "
            "file_name, of images that are there, and label"
        ) from None


def _two_columns(data: Dataset, place: str, label_column: str | None, split: str | None = None) -> Dataset:
    """The columns image and label of a table; ``split``: what it serves for, where its own name does not say."""
    data, image = with_images(data)
    labels = [name for name in ([label_column] if label_column else LABELS) if name in data.features]
    if image is None or not labels or len(data) == 0:
        expected = label_column or f"one of {', '.join(LABELS)}; see --label_column"
        raise UserError(
            f"{place} has {len(data)} rows with the columns {', '.join(data.features)}: expected images and {expected}"
        )
    data = data.select_columns([image, labels[0]])
    data = data.rename_columns({old: new for old, new in ((image, "image"), (labels[0], "label")) if old != new})
    skipped = ""
    if isinstance(kind := data.features["label"], ClassLabel):  # -1 or nothing where the label is hidden
        column = data.data.column("label").to_numpy()
        known = np.flatnonzero(np.nan_to_num(column, nan=-1) != -1)
        if len(known) == 0:
            raise UserError(
                f"{place} has no labels, its {len(data)} rows hold -1: expected classes to score or learn by"
            )
        if len(known) < len(data):
            skipped = f" (skipped: {len(data) - len(known):,} without a label)"
            data = data.select(known)
    for name in ("image",) if isinstance(kind, ClassLabel) else ("image", "label"):
        if nulls := np.flatnonzero(data.data.column(name).is_null().to_numpy()).tolist():
            raise UserError(f"{place}, row {nulls[0]}: no {name}; expected one in every row, {len(nulls)} have none")
    if not isinstance(kind, ClassLabel) and kind not in (Value("string"), Value("int64")):
        data = data.cast_column("label", _label_type(data, place))
    data.info.description = f"{place}{skipped}"
    data._split = NamedSplit(split) if split else data.split
    return data


def with_images(data: Dataset) -> tuple[Dataset, str | None]:
    """The data with columns of encoded images as such, which were written without `datasets`; and which one is read."""
    for name, kind in data.features.items():
        fields = {*kind} if isinstance(kind, dict) else set()
        bare = name in IMAGES and kind in (Value("binary"), Value("large_binary"))
        if bare or ("bytes" in fields and fields <= {"bytes", "path"}):
            data = data.cast_column(name, Image())
    found = [name for name, kind in data.features.items() if isinstance(kind, Image)]
    return data, min(found, key=lambda name: name not in IMAGES, default=None)


def _label_type(data: Dataset, place: str) -> Value:
    """What a column of labels is cast to: text or whole numbers."""
    kind = data.features["label"]
    if not isinstance(kind, Value):
        what = "lists" if isinstance(kind, list) or hasattr(kind, "feature") else str(kind)
        raise UserError(f"{place} has labels that are {what}: expected one class for each image, as text or a number")
    if kind.dtype in ("large_string", "string_view"):
        return Value("string")
    if kind.dtype.startswith(("int", "uint", "bool")):
        return Value("int64")
    if kind.dtype.startswith("float"):  # whole numbers, as pandas keeps a column that once had gaps
        odd = [x for x in data["label"][:] if not float(x).is_integer()]
        if not odd:
            return Value("int64")
        raise UserError(f"{place} holds the label {odd[0]!r}: expected classes, as text or whole numbers")
    raise UserError(f"{place} has labels of type {kind.dtype}: expected classes, as text or whole numbers")
