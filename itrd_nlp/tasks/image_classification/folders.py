"""Folders of images: a folder for each class, below a folder for each split or not, in an archive or not."""

import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from datasets import Dataset, Image, config
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from itrd_nlp.utils.archives import unpack_archive
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.hashing import file_digest
from itrd_nlp.utils.io import paths_below

SPLITS = {  # names of split folders, preferred ones first
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "test", "testing"),
}
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}
# what Pillow opens beside torchvision's own list
SUFFIXES = {*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2", ".jpe", ".pbm", ".pnm", ".tga"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # labels beside the images, as `datasets` reads them
# what operating systems and file servers leave behind, besides names that start with a dot
LEFT_BEHIND = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}
ARCHIVES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)  # .zip, .tar.gz, ...


def is_hidden(name: str) -> bool:
    """Whether a name is not the user's: ``.DS_Store``, ``.ipynb_checkpoints``, ``__MACOSX``, ``Thumbs.db``."""
    return name.startswith(".") or name in LEFT_BEHIND


def unpack(archive: Path) -> Path:
    """Unpack an archive once, into the cache of `datasets`, and return the folder.

    Raises:
        UserError: it cannot be unpacked.
    """
    folder = Path(config.HF_DATASETS_CACHE) / "itrd_nlp" / f"unpacked-{file_digest(archive)[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        files = Path(temporary) / "files"
        try:
            unpack_archive(archive, files)
        except (OSError, EOFError, ValueError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive}: expected an archive of images ({one_line(error)})") from None
        with suppress(OSError):  # another process was faster
            files.rename(folder)
    return folder


def split_root(root: Path, split: str) -> Path:
    """Find the folder of a split: it holds a folder for each class, or ``metadata.csv``.

    A folder that holds nothing but a folder of folders, as archives often do, stands for the inner one.

    Args:
        root: a folder of classes, or of splits with names from ``SPLITS``.
        split: ``train`` or ``validation``.

    Raises:
        UserError: there are splits, but not this one; or folders that may be splits or classes.
    """
    root, splits = _find_splits(root)
    if not splits:
        return root
    for name in SPLITS[split]:
        if name in splits:
            root = splits[name]
            while inner := _wrapped_folder(root):
                root = inner
            return root
    raise UserError(f"{root} has the splits {', '.join(sorted(splits))}: expected {SPLITS[split][0]} too")


def splits_in(root: Path) -> set[str]:
    """Which of ``SPLITS`` a folder holds, each with folders of images."""
    names = {*_find_splits(root)[1]}
    return {split for split, of_split in SPLITS.items() if names & {*of_split}}


def _find_splits(root: Path) -> tuple[Path, dict[str, Path]]:
    """The first folder, from ``root`` inwards, that holds more than one folder or splits; and its splits by name."""
    while True:
        folders = [] if has_metadata(root) else folders_in(root)
        splits = {
            path.name.lower(): path
            for path in folders
            if path.name.lower() in SPLIT_NAMES and (folders_in(path) or has_metadata(path))
        }
        if 0 < len(splits) < len(folders):
            other = next(path.name for path in folders if path not in splits.values())
            raise UserError(
                f"{root} holds {next(iter(splits.values())).name}, with folders in it, beside {other}: expected "
                "splits alone or classes alone; give the folder of a split itself"
            )
        inner = _wrapped_folder(root)
        if splits or inner is None:
            return root, splits
        root = inner


def _wrapped_folder(root: Path) -> Path | None:
    """The only folder in a folder, if the outer one merely wraps it."""
    folders = folders_in(root)
    if len(folders) != 1 or has_metadata(root):
        return None
    inner = folders[0]
    return inner if has_metadata(inner) or (folders_in(inner) and not _images_in(root)) else None


def has_tables(root: Path) -> bool:
    """Whether a folder holds tables of images: what ``save_to_disk`` wrote, or parquet files as on the Hub."""
    if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
        return True
    tables = (path for suffix in ("parquet", "arrow") for path in root.rglob(f"*.{suffix}"))
    return not any(images_below(root)) and any(path.name not in METADATA for path in tables)


def is_of_images(root: Path) -> bool:
    """Whether a folder holds folders of image files, without tables or metadata."""
    return root.is_dir() and not has_metadata(root) and not has_tables(root) and any(images_below(root))


def read_class_folders(root: Path, source: str, split: str) -> Dataset:
    """Read the images of a folder that holds a folder for each class, as the columns image and label.

    Args:
        root: the folder.
        source: what messages call it.
        split: ``train`` or ``validation``.

    Raises:
        UserError: it holds no folders, or one without images.
    """
    names = [path.name for path in folders_in(root)]
    outside = _images_in(root)
    if not names:
        content = f"{len(outside)} images outside class folders" if outside else "no folders"
        raise UserError(
            f"{root} holds {content}: expected a folder with one of images for each class, or metadata.csv beside the "
            "images, with the columns file_name and label"
        )
    hidden = sum(is_hidden(path.name) for path in root.iterdir())
    skipped = Counter({"outside the class folders": len(outside), "hidden": hidden})

    def is_image(file: str) -> bool:
        path = Path(file).relative_to(root)
        kind = "hidden" if any(map(is_hidden, path.parts)) else path.suffix.lower() or "without a suffix"
        if kind not in SUFFIXES:
            skipped[kind] += 1
        return kind in SUFFIXES

    indices = {name: i for i, name in enumerate(names)}
    samples = ImageFolder.make_dataset(str(root), indices, is_valid_file=is_image, allow_empty=True)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()) if count)
    message = f" (skipped: {counts})" if counts else ""
    empty = sorted({*range(len(names))} - {index for _, index in samples})
    if empty:
        raise UserError(
            f"{root / names[empty[0]]} holds no images, {len(empty)} of {len(names)} class folders hold none: "
            f"expected files such as .jpg or .png in each; fill the folder or remove it{message}"
        )
    columns = {"image": [file for file, _ in samples], "label": [names[index] for _, index in samples]}
    data = Dataset.from_dict(columns, split=split).cast_column("image", Image())
    data.info.description = f"{source}{message}"
    return data


def folders_in(root: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def images_below(root: Path) -> Iterator[Path]:
    """The image files below a folder, at any depth, that are not hidden."""
    return (path for path in paths_below(root, is_hidden) if path.suffix.lower() in SUFFIXES and not path.is_dir())


def has_metadata(root: Path) -> bool:
    """Whether a folder holds a file of labels beside its images."""
    return any((root / name).is_file() for name in METADATA)


def _images_in(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and not is_hidden(path.name)]
