"""Archives: only the named members are unpacked, and damage is refused."""

import io
import tarfile
import zipfile

import pytest

from diffusion.data.readers.archives import unpack_tar, unpack_zip
from diffusion.system.errors import DiffctlError

MEMBERS = ["set/one", "set/two"]


def write_tar(path, *entries):
    """Write a gzipped tar of (TarInfo, content) or (name, content) entries."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_only_named_members_are_unpacked(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", ("set/one", b"1"), ("set/more", b"x"), ("set/two", b"2"))
    folder = unpack_tar(archive, MEMBERS, tmp_path / "out")
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == [
        ("one", b"1"),
        ("two", b"2"),
    ]
    archive.write_bytes(b"")
    assert unpack_tar(archive, MEMBERS, tmp_path / "out") == folder  # not unpacked again


def test_hostile_members_are_ignored(tmp_path):
    outside = tmp_path / "outside"
    archive = write_tar(
        tmp_path / "a.tar.gz",
        ("../outside", b"evil"),
        (str(outside), b"evil"),
        (special("set/link", tarfile.SYMTYPE, str(tmp_path)), b""),
        ("set/link/outside", b"evil"),
        ("set/one", b"1"),
        ("set/two", b"2"),
    )
    unpack_tar(archive, MEMBERS, tmp_path / "out")
    assert not outside.exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_special_member_is_refused(tmp_path, kind):
    archive = write_tar(
        tmp_path / "a.tar.gz", ("set/one", b"1"), (special("set/two", kind, "/etc/passwd"), b"")
    )
    with pytest.raises(DiffctlError, match="set/two is not a plain file"):
        unpack_tar(archive, MEMBERS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_member_is_refused(tmp_path):
    with pytest.raises(DiffctlError, match="has no set/two"):
        unpack_tar(write_tar(tmp_path / "a.tar.gz", ("set/one", b"1")), MEMBERS, tmp_path / "out")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"junk", lambda content: b""]
)
def test_damaged_archive_leaves_no_files(tmp_path, damage):
    archive = write_tar(tmp_path / "a.tar.gz", ("set/one", b"1" * 50_000), ("set/two", b"2" * 50_000))
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DiffctlError, match="is damaged"):
        unpack_tar(archive, MEMBERS, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_named_files_of_a_zip_are_unpacked_flat(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("Some_folder/one", "1")
        packed.writestr("../../two", "2")
        packed.writestr("other", "x")
    found = unpack_zip(tmp_path / "a.zip", ["one", "two", "three"], tmp_path / "out")
    assert sorted(found) == [tmp_path / "out/one", tmp_path / "out/two"]
    assert (tmp_path / "out/two").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_flipped_bit_in_zip_is_detected(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("one", "1" * 1000)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[100] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DiffctlError, match=r"a\.zip is not a complete zip"):
        unpack_zip(tmp_path / "a.zip", ["one"], tmp_path / "out")
    assert not (tmp_path / "out/one").exists()
