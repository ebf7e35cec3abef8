"""What is unpacked stays inside."""

import io
import tarfile

import pytest

from itrd_nlp.utils.archives import unpack_archive


def pack(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "../../outside", 2 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"ab"))
    return path


@pytest.fixture(params=["filters", "none"], autouse=True)
def python(request, monkeypatch):
    """Python with tarfile's filters and, as before 3.11.4, without."""
    if request.param == "none":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filters")


def test_files_are_unpacked_with_their_folders(tmp_path):
    archive = pack(tmp_path / "x.tar.gz", ("cat", tarfile.DIRTYPE), ("cat/1.txt", tarfile.REGTYPE))
    unpack_archive(archive, tmp_path / "out")
    assert (tmp_path / "out" / "cat" / "1.txt").read_bytes() == b"ab"


@pytest.mark.promise("malicious files")
@pytest.mark.parametrize(
    "name,kind", [("../x", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)]
)
def test_what_leads_outside_is_refused(tmp_path, name, kind):
    with pytest.raises(tarfile.TarError):
        unpack_archive(pack(tmp_path / "x.tar.gz", (name, kind)), tmp_path / "out")
    assert not (tmp_path / "x").exists()
