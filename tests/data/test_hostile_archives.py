"""Archive bombs and invalid archives end in one sentence, within time and memory limits."""

import gzip
import io
import os
import struct
import tarfile
import zipfile

import pytest

from diffusion.data.readers import archives
from diffusion.data.readers.archives import unpack_tar, unpack_zip, zip_names
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import bounded, write_gzip_bomb, write_zip_bomb

LARGE = 3000  # MB, from a few MB


def write_member(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (8, 1, "encrypted"),
        (10, 12, "compression method"),
        (10, 14, "compression method"),
        (10, 93, "compression method"),
    ],
)
def test_encrypted_or_unsupported_members_are_refused(tmp_path, at, value, why):
    path = write_member(tmp_path / "x.zip", "one", b"content")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + at] |= value
    path.write_bytes(content)
    with pytest.raises(DiffctlError, match=f"one .*{why}"):
        unpack_zip(path, ["one"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("one", "one"), ("a/one", "b/one")])
def test_duplicate_members_of_zip_are_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    with pytest.raises(DiffctlError, match="has one twice"):
        unpack_zip(tmp_path / "x.zip", ["one"], tmp_path / "out")


def test_zip_bomb_is_refused(tmp_path):
    write_zip_bomb(tmp_path / "x.zip", "one", b"", LARGE)
    assert "one unpacks to" in bounded(lambda: unpack_zip(tmp_path / "x.zip", ["one"], tmp_path / "out"))


def test_zip_with_too_many_members_is_refused(tmp_path):
    path = write_member(tmp_path / "x.zip", "one", b"")
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x05\x06")
    content[at + 12 : at + 20] = struct.pack("<II", 10 << 20, 40)
    path.write_bytes(bytes(40) + b"PK\x01\x02" * (10 << 18) + content[at:])
    assert "list of members is too long" in bounded(lambda: zip_names(path))


def tar(path, *members, pax=()):
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as made:
        for name, content, headers in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), headers
            made.addfile(info, io.BytesIO(content))
    return path


SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "one",
    "GNU.sparse.realsize": str(10**15),
}


def test_sparse_member_is_refused(tmp_path):
    path = tar(tmp_path / "x.tar.gz", ("one", b"1\n0\n0\n".ljust(512, b"\0"), SPARSE))
    assert "one is not a plain file" in bounded(lambda: unpack_tar(path, ["one"], tmp_path / "out"))


def test_duplicate_member_of_tar_is_refused(tmp_path):
    path = tar(tmp_path / "x.tar.gz", ("one", b"1", {}), ("one", b"2", {}))
    with pytest.raises(DiffctlError, match="has one twice"):
        unpack_tar(path, ["one"], tmp_path / "out")


def test_only_content_of_a_member_is_used(tmp_path):
    path = tar(
        tmp_path / "x.tar.gz",
        ("one", b"1", {"mtime": "9e300", "uid": "4000000000", "SCHILY.xattr.user.a": "b"}),
    )
    out = unpack_tar(path, ["one"], tmp_path / "out")
    assert (out / "one").read_bytes() == b"1"
    assert (out / "one").stat().st_uid == os.getuid()


def negative(size):
    head = bytearray(tarfile.TarInfo("more").tobuf())
    head[124:136] = (size % 2**96).to_bytes(12, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize("size", [-1, -512, -513, -1024, -(2**40)])
def test_negative_size_ends(tmp_path, size):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(negative(size) * 3 + bytes(1024)))
    message = bounded(lambda: unpack_tar(tmp_path / "x.tar.gz", ["one"], tmp_path / "out"))
    assert "is damaged" in message or "has no one" in message


@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_tar_bomb_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("more")
    info.type, info.size = kind, 1 << 32
    write_gzip_bomb(tmp_path / "x.tar.gz", info.tobuf(), LARGE)
    message = bounded(lambda: unpack_tar(tmp_path / "x.tar.gz", ["one"], tmp_path / "out"))
    assert "larger than a supported archive's" in message


def test_tar_with_too_many_members_is_refused(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar.gz", *((f"more/{at}", b"", {}) for at in range(9)), ("one", b"", {}))
    unpack_tar(path, ["one"], tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 9)
    with pytest.raises(DiffctlError, match="do not follow each other"):
        unpack_tar(path, ["one"], tmp_path / "other")
