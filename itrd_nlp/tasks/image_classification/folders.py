"""Folders of images: one folder for each class, with or without a folder for each split above, packed or not."""

import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import datasets
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.hashing import file_digest

SPLITS = {  # what folders of whole splits are called, in the order in which they are taken
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "test", "testing"),
}
# what Pillow opens beside torchvision's own list
SUFFIXES = {*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2", ".jpe", ".pbm", ".pnm", ".tga"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # labels beside the images, as `datasets` reads them
# what computers leave in folders, beside everything whose name starts with a dot
LEFT_BEHIND = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}
ARCHIVES = tuple(suffix for _, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes)  # .zip, .tar.gz, ...


class ClassFolders(NamedTuple):
    """The images below one folder for each class."""

    files: list[str]
    classes: list[str]  # of each file
    skipped: str  # what lay between them, for a message; "" where nothing did


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no user's: ``.DS_Store``, ``.ipynb_checkpoints``, ``__MACOSX``, ``Thumbs.db``."""
    return name.startswith(".") or name in LEFT_BEHIND


def unpacked(archive: Path) -> Path:
    """The folder that holds what is in an archive; made once, beside what `datasets` keeps.

    Raises:
        UserError: it cannot be unpacked.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "itrd_nlp" / f"unpacked-{file_digest(archive)[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        inside = Path(aside) / "files"
        try:
            shutil.unpack_archive(archive, inside, filter=None if archive.suffix.lower() == ".zip" else "data")
        except (OSError, EOFError, ValueError, RuntimeError, shutil.ReadError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive}: expected an archive of images ({first_line(error)})") from None
        with suppress(FileExistsError, OSError):  # another process was faster
            inside.rename(folder)
    return folder


def split_root(root: Path, training: bool) -> Path:
    """The folder of a split that holds the folders of its classes, or ``metadata.csv``.

    A folder whose only content is a folder of folders, as archives make it, stands for that one.

    Args:
        root: a folder of classes, or of splits by one of the names in ``SPLITS``.
        training: which split is wanted.

    Raises:
        UserError: splits without the wanted one; folders that may be splits or classes.
    """
    split = None
    while True:
        inner = folders_in(root)
        named = {path.name.lower(): path for path in inner if path.name.lower() in sum(SPLITS.values(), ())}
        named = {name: path for name, path in named.items() if folders_in(path) or has_metadata(path)}
        if named and split is None and not has_metadata(root):
            if len(named) < len(inner):
                other = next(path.name for path in inner if path not in named.values())
                raise UserError(
                    f"{root} holds {next(iter(named.values())).name}, with folders in it, beside {other}: expected "
                    "splits alone or classes alone; give the folder of a split itself"
                )
            kind = "train" if training else "validation"
            split = next((named[name] for name in SPLITS[kind] if name in named), None)
            if split is None:
                raise UserError(f"{root} has the splits {', '.join(sorted(named))}: expected {SPLITS[kind][0]} too")
            root = split
        elif len(inner) == 1 and not has_metadata(root) and _is_wrapped(root, inner[0]):
            root = inner[0]
        else:
            return root


def has_splits(root: Path) -> bool:
    """Whether a folder holds splits, each with folders of images."""
    try:
        return split_root(root, True) != root or split_root(root, False) != root
    except UserError:
        return False


def has_tables(root: Path) -> bool:
    """Whether a folder holds tables of images: what ``save_to_disk`` wrote, or parquet files as on the Hub."""
    if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
        return True
    tables = (path for suffix in ("parquet", "arrow") for path in root.rglob(f"*.{suffix}"))
    return any(path.name not in METADATA for path in tables) and not any(_images(root))


def is_of_images(root: Path) -> bool:
    """Whether a folder holds folders of image files, with no list of them."""
    return root.is_dir() and not has_metadata(root) and not has_tables(root) and any(_images(root))


def class_folders(root: Path) -> ClassFolders:
    """The images below a folder with one folder for each class.

    Raises:
        UserError: no such folders, or one without images.
    """
    names = [path.name for path in folders_in(root)]
    loose = _images_in(root)
    if not names:
        what = f"{len(loose)} images outside class folders" if loose else "no folders"
        raise UserError(
            f"{root} holds {what}: expected a folder with one of images for each class, or metadata.csv beside the "
            "images, with the columns file_name and label"
        )
    skipped = Counter({"outside the class folders": len(loose)})
    skipped["hidden"] += sum(is_hidden(path.name) for path in root.iterdir())

    def is_image(file: str) -> bool:
        path = Path(file)
        if any(is_hidden(part) for part in path.relative_to(root).parts):
            skipped["hidden"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            skipped[path.suffix.lower() or "without a suffix"] += 1
        else:
            return True
        return False

    places = {name: i for i, name in enumerate(names)}
    samples = ImageFolder.make_dataset(str(root), places, is_valid_file=is_image, allow_empty=True)
    empty = sorted({*range(len(names))} - {place for _, place in samples})
    if empty:
        raise UserError(
            f"{root / names[empty[0]]} holds no images, {len(empty)} of {len(names)} class folders hold none: "
            f"expected files such as .jpg or .png in each; fill the folder or remove it{_counted(skipped)}"
        )
    return ClassFolders([file for file, _ in samples], [names[place] for _, place in samples], _counted(skipped))


def _is_wrapped(root: Path, inside: Path) -> bool:
    """Whether the one folder in a folder is what was meant."""
    return has_metadata(inside) or bool(folders_in(inside) and not _images_in(root))


def folders_in(root: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def images_below(root: Path) -> list[Path]:
    """The images below a folder, at any depth."""
    return [*_images(root)]


def _images(root: Path) -> Iterator[Path]:
    files = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return (path for path in files if not any(map(is_hidden, path.relative_to(root).parts)))


def has_metadata(root: Path) -> bool:
    """Whether labels stand in a file beside the images."""
    return any((root / name).is_file() for name in METADATA)


def _images_in(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and not is_hidden(path.name)]


def _counted(skipped: Counter[str]) -> str:
    """``" (skipped: 2 hidden, 1 .txt)"``, or nothing."""
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items()) if count)
    return f" (skipped: {counts})" if counts else ""
