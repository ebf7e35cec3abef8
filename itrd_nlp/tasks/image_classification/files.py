"""Read labelled images from the Hub, parquet files, folders and archives, as the columns image and label."""

from glob import escape
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Image, NamedSplit, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PIL
from torchvision.datasets import CIFAR10, CIFAR100

from itrd_nlp.tasks.image_classification.decoding import encoded_images
from itrd_nlp.tasks.image_classification.folders import (
    ARCHIVES,
    has_metadata,
    has_tables,
    images_below,
    is_of_images,
    read_class_folders,
    split_root,
    splits_in,
    unpack,
)
from itrd_nlp.tasks.tabular import SPLITS, load_splits, read_table, reason
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.hashing import file_digest

IMAGES = ("image", "img")  # preferred to other columns of images, such as masks
LABELS = ("label", "labels", "fine_label", "fine_labels")


def load_images(
    dataset: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    config: str | None = None,
    label_column: str | None = None,
) -> tuple[Dataset | None, Dataset | None]:
    """Load labelled images for training and evaluation, with the columns image and label.

    A label is an index of a ``ClassLabel`` if the data set declares its classes, an integer if it has numbers alone,
    and text if it has names alone, as folders have; :mod:`itrd_nlp.vision.classes` makes classes of them.
    ``info.description`` says where a split comes from and which images were skipped.

    Args:
        dataset: Hub id, or a folder with a folder for each split; train, and validation or test, are read.
        train_file: a parquet file with a column of images and one of labels; a folder with a folder of images for
            each class, or with metadata.csv; CIFAR as torchvision unpacks it; a folder that ``save_to_disk`` wrote; or
            any of these folders as .zip or .tar.gz. Replaces the dataset's split.
        validation_file: the same for evaluation.
        config: name of a configuration of the dataset.
        label_column: of parquet files and the Hub; by default the first of ``LABELS`` that exists.

    Raises:
        UserError: no argument, or one that cannot be read.
    """
    files = {"train": train_file, "validation": validation_file}
    if not (dataset or any(files.values())):
        raise UserError("no images given: expected --dataset HUB_ID, or --train_file and --validation_file")
    if dataset and (Path(dataset).is_file() or dataset.lower().endswith(ARCHIVES)):
        raise UserError(
            f"dataset '{dataset}' is one file: expected a Hub id or a folder with a folder for each split; name files "
            "and archives as --train_file and --validation_file"
        )
    if dataset and is_of_images(Path(dataset)):  # `datasets` would guess splits from the names of classes
        split_names = splits_in(Path(dataset))
        if not all(files.values()) and not split_names:
            raise UserError(
                f"dataset '{dataset}' holds no splits: expected the folders train and validation in it, or "
                "--train_file and --validation_file instead"
            )
        files = {split: file or (dataset if split in split_names else None) for split, file in files.items()}
        dataset = None
    hub = load_splits(dataset, config, owner="uoft-cs") if dataset and not all(files.values()) else {}
    if hub and not any(name in hub for names in SPLITS.values() for name in names):
        raise UserError(f"dataset {dataset!r} has the splits {sorted(hub)}: expected train, or one to evaluate")
    splits: dict[str, Dataset | None] = {}
    for split, file in files.items():
        name = next((name for name in SPLITS[split] if name in hub), None)
        if file:
            splits[split] = _read(file, label_column, split)
        else:
            splits[split] = _two_columns(hub[name], f"{dataset} {name}", label_column) if name else None
    return splits["train"], splits["validation"]


def _read(source: str, label_column: str | None, split: str) -> Dataset:
    """Read the split, ``train`` or ``validation``, of a file, folder or archive."""
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder; expected a parquet file, or a folder of images")
    folder = unpack(path) if path.is_file() and path.name.lower().endswith(ARCHIVES) else path
    if (data := _unpacked_cifar(folder, source, split)) is not None:
        _refuse_column(label_column, source)
        return data
    if folder.is_file() or has_tables(folder):
        data = read_table(str(folder), split, "images").dataset
        if data is None:
            raise UserError(f"{source} holds no images: expected parquet files, or folders of images")
        if folder.is_file():  # the fingerprint of `datasets` depends on the path and the time of modification
            data._fingerprint = file_digest(folder)
        return _two_columns(data, source, label_column, split)
    root = split_root(folder, split)
    shown = (path / root.relative_to(folder)).as_posix()
    if has_metadata(root):
        return _with_metadata(root, shown, label_column, split)
    _refuse_column(label_column, source)
    return read_class_folders(root, shown, split)


def _refuse_column(label_column: str | None, source: str) -> None:
    if label_column is not None:
        raise UserError(f"--label_column {label_column}: {source} has one set of classes and no columns; leave it out")


def _unpacked_cifar(folder: Path, source: str, split: str) -> Dataset | None:
    """CIFAR-10 or CIFAR-100 as torchvision unpacks them into a folder, else None."""
    for kind in (CIFAR10, CIFAR100):
        root = folder.parent if folder.name == kind.base_folder else folder
        if not (root / kind.base_folder).is_dir():
            continue
        try:
            cifar = kind(str(root), train=split == "train")
        except RuntimeError as error:
            raise UserError(f"{source}: not what torchvision unpacks ({one_line(error)})") from None
        columns = {"image": [PIL.fromarray(pixels) for pixels in cifar.data], "label": cifar.targets}
        data = Dataset.from_dict(columns, split=split).cast_column("label", ClassLabel(names=cifar.classes))
        data.info.description = source
        return data
    return None


def _with_metadata(root: Path, source: str, label_column: str | None, split: str) -> Dataset:
    """Images with metadata.csv, .jsonl or .parquet beside them, which lists file names and labels."""
    try:
        data = load_dataset("imagefolder", data_files={split: [f"{escape(str(root))}/**"]}, split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise UserError(
            f"{source}: metadata beside the images cannot be read ({reason(error)}): expected the columns "
            "file_name, of images that are there, and label"
        ) from None
    data = _two_columns(data, source, label_column, split)
    listed = {Path(row["image"]["path"]).absolute() for row in encoded_images(data) if row["image"]["path"]}
    if unlisted := sum(image.absolute() not in listed for image in images_below(root)):
        data.info.description += f" (skipped: {unlisted:,} without a row of metadata)"
    return data


def check_no_nulls(data: Dataset, column: str, source: str) -> None:
    """Raise :class:`UserError` where a row has nothing in a column."""
    if nulls := np.flatnonzero(data.data.column(column).is_null().to_numpy()).tolist():
        raise UserError(f"{source}, row {nulls[0]}: no {column}; expected one in every row, {len(nulls)} have none")


def _two_columns(data: Dataset, source: str, label_column: str | None, split: str | None = None) -> Dataset:
    """Select the columns image and label, and check them; ``split`` renames the data's own."""
    data, image = with_images(data)
    candidates = [label_column] if label_column else LABELS
    label = next((name for name in candidates if name in data.features), None)
    if image is None or label is None or len(data) == 0:
        expected = label_column or f"one of {', '.join(LABELS)}; see --label_column"
        raise UserError(
            f"{source} has {len(data)} rows with the columns {', '.join(data.features)}: expected images and {expected}"
        )
    data = data.select_columns([image, label])
    data = data.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    rows, declared = len(data), isinstance(data.features["label"], ClassLabel)
    for name in ["image"] if declared else ["image", "label"]:
        check_no_nulls(data, name, source)
    data = _labelled_rows(data, source) if declared else _with_plain_labels(data, source)
    skipped = f" (skipped: {rows - len(data):,} without a label)" if len(data) < rows else ""
    data.info.description = f"{source}{skipped}"
    data._split = NamedSplit(split) if split else data.split
    return data


def _labelled_rows(data: Dataset, source: str) -> Dataset:
    """Drop rows whose label is hidden: -1 or null in a column of declared classes."""
    labels = data.data.column("label").to_numpy()
    labelled = np.flatnonzero(np.nan_to_num(labels, nan=-1) != -1)
    if len(labelled) == 0:
        raise UserError(f"{source} has no labels, its {len(data)} rows hold -1: expected classes to score or learn by")
    return data if len(labelled) == len(data) else data.select(labelled)


def with_images(data: Dataset) -> tuple[Dataset, str | None]:
    """Cast columns of encoded images, which other libraries write as bytes, to images; and name the one to read."""
    for name, kind in data.features.items():
        fields = {*kind} if isinstance(kind, dict) else set()
        is_bytes = name in IMAGES and kind in (Value("binary"), Value("large_binary"))
        is_encoded = isinstance(kind, Image) and not kind.decode
        if is_bytes or is_encoded or ("bytes" in fields and fields <= {"bytes", "path"}):
            data = data.cast_column(name, Image())
    images = [name for name, kind in data.features.items() if isinstance(kind, Image)]
    return data, min(images, key=lambda name: name not in IMAGES, default=None)


def _with_plain_labels(data: Dataset, source: str) -> Dataset:
    """Cast labels that are not declared classes to text or int64."""
    kind = data.features["label"]
    dtype = kind.dtype if isinstance(kind, Value) else type(kind).__name__
    if dtype.startswith("float"):  # as pandas stores integers in a column that once had gaps
        fraction = next((label for label in data["label"][:] if not float(label).is_integer()), None)
        if fraction is not None:
            raise UserError(f"{source} holds the label {fraction!r}: expected classes, as text or whole numbers")
    if dtype in ("string", "large_string", "string_view"):
        return data.cast_column("label", Value("string"))
    if dtype.startswith(("int", "uint", "bool", "float")):
        return data.cast_column("label", Value("int64"))
    raise UserError(
        f"{source} has labels of type {dtype}: expected one class for each image, as text or a whole number"
    )
