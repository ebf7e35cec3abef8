"""Archives from elsewhere, of which nothing lands outside the folder that they are unpacked into."""

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a .zip, or a .tar in any compression.

    Raises:
        tarfile.TarError: a broken archive, or one that holds more than files and folders in it; zipfile and shutil have
            errors of their own.
    """
    if archive.suffix.lower() == ".zip":
        shutil.unpack_archive(archive, folder)
        return
    with tarfile.open(archive) as opened:
        extract(opened, opened.getmembers(), folder)


def extract(opened: tarfile.TarFile, members: Iterable[tarfile.TarInfo], folder: Path) -> None:
    """Extract members of a tar archive; raises ``tarfile.TarError`` for one that would lead outside."""
    members = list(members)
    if hasattr(tarfile, "data_filter"):
        opened.extractall(folder, members, filter="data")
        return
    for member in members:  # Python before 3.11.4, as in Debian 12, has no filters
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is not a file or folder inside the archive")
    opened.extractall(folder, members)
