"""Archives, npz and IDX files: only named members are unpacked; bombs and damage end in one sentence."""

import gzip
import io
import struct
import tarfile
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.readers import archives
from diffusion.data.readers.archives import open_npz, unpack_tar, unpack_zip
from diffusion.data.sources.cifar import read_batches
from diffusion.evaluate.adhoc import open_images
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import bounded
from tests.helpers.raw_data import random_images, write_fashion, write_numbered, zip_bytes


def test_only_named_members_of_a_tar_are_unpacked(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in ("../two", "set/one", "set/more", "set/two"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    for _ in range(2):
        folder = unpack_tar(tmp_path / "a.tar.gz", ["set/one", "set/two"], tmp_path / "out")
        content = {path.name: path.read_text() for path in folder.iterdir()}
        assert content == {"one": "set/one", "two": "set/two"}
        (tmp_path / "a.tar.gz").write_bytes(b"")  # it is not unpacked again


def test_tar_that_another_process_unpacked_meanwhile_is_not_unpacked_again(tmp_path, monkeypatch):
    def wait_for_another(lock):
        assert lock == tmp_path / ".out.lock"
        write_numbered(tmp_path / "out", random_images(0, 1, 8))
        return nullcontext()

    monkeypatch.setattr(archives, "file_lock", wait_for_another)
    assert unpack_tar(tmp_path / "none.tar.gz", ["set/0.png"], tmp_path / "out") == tmp_path / "out"


def write_zip(path, **members):
    path.write_bytes(zip_bytes(members))
    return path


def test_named_files_of_a_zip_are_unpacked_flat(tmp_path):
    archive = write_zip(tmp_path / "a.zip", **{"Some_folder/one": "1", "../../two": "2", "other": "x"})
    unpack_zip(archive, ["one", "two", "three"], tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"one": "1", "two": "2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_files_of_another_zip_are_replaced(tmp_path):
    for content in ("1", "2"):  # of one size
        unpack_zip(write_zip(tmp_path / "a.zip", one=content), ["one"], tmp_path / "out")
        assert (tmp_path / "out/one").read_text() == content
    before = (tmp_path / "out/one").stat().st_ino
    unpack_zip(tmp_path / "a.zip", ["one"], tmp_path / "out")
    assert (tmp_path / "out/one").stat().st_ino == before, "an equal file stays"


@pytest.mark.parametrize(
    ("at", "value", "why"), [(8, 1, "encrypted"), (10, 12, "compression method"), (16, 1, "Bad CRC")]
)
def test_unreadable_member_of_a_zip_is_refused(tmp_path, at, value, why):
    path = write_zip(tmp_path / "x.zip", one="content")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + at] ^= value
    path.write_bytes(content)
    with pytest.raises(DiffctlError, match=why):
        unpack_zip(path, ["one"], tmp_path / "out")
    assert not (tmp_path / "out/one").exists()


def test_duplicate_members_of_zip_are_refused(tmp_path):
    archive = write_zip(tmp_path / "x.zip", **{"a/one": "1", "b/one": "2"})
    with pytest.raises(DiffctlError, match="has one twice"):
        unpack_zip(archive, ["one"], tmp_path / "out")


def test_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "HARMLESS_SIZE", 1 << 20)
    (tmp_path / "x.zip").write_bytes(zip_bytes({"one": bytes(2 << 20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(DiffctlError, match="one unpacks to"):
        unpack_zip(tmp_path / "x.zip", ["one"], tmp_path / "out")
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros(2 << 20, np.uint8))
    with pytest.raises(DiffctlError, match=r"arr_0\.npy unpacks to"):
        open_npz(tmp_path / "x.npz", "arr_0")


def header(shape, kind="|u1", fortran=False):
    text = repr({"descr": kind, "fortran_order": fortran, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "head",
    [
        header((10**9, 100, 100, 100)),
        header((-1, 8, 8, 3)),
        header((2, 8, 8, 3), "|O"),
        header((2, 8, 8, 3), [("a", "|u1")]),
        header((2, 8, 8, 3), fortran=True),
        header((2.0, 8, 8, 3)),
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '''   ",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"",
    ],
)
def test_npz_with_false_header_is_refused(tmp_path, head):
    path = write_zip(tmp_path / "x.npz", **{"arr_0.npy": head + bytes(384)})
    assert "is not a complete zip or npz" in bounded(lambda: open_npz(path, "arr_0").shape)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_are_mapped_and_their_checksum_verified(tmp_path, save):
    arrays = {"a": random_images(0, 5, 40), "b": np.arange(7.0), "none": np.empty((0, 3))}
    save(tmp_path / "x.npz", **arrays)
    for key, expected in arrays.items():
        np.testing.assert_array_equal(open_npz(tmp_path / "x.npz", key), expected)
    assert isinstance(open_npz(tmp_path / "x.npz", "a"), np.memmap)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DiffctlError, match=r"x\.npz is not a complete zip or npz"):
        open_npz(tmp_path / "x.npz", "a")


def test_images_larger_than_memory_are_refused(tmp_path, monkeypatch):
    write_numbered(tmp_path / "x", random_images(0, 3, 8))
    monkeypatch.setattr("diffusion.evaluate.adhoc.machine_memory", lambda: (10**6, 575))
    with pytest.raises(DiffctlError, match=r"x take .* of memory"):
        open_images(tmp_path / "x")
    monkeypatch.setattr("diffusion.evaluate.adhoc.machine_memory", lambda: (10**6, 576))
    assert len(open_images(tmp_path / "x")) == 3


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.empty(0, int), np.full(2, 9), np.zeros(2)])
def test_mismatched_labels_are_refused(tmp_path, labels):
    np.savez(tmp_path / "x.npz", data=np.zeros((2, 48), np.uint8)[: len(labels)], labels=labels)
    with pytest.raises(DiffctlError, match=r"x\.npz"):
        read_batches([tmp_path / "x.npz"], "labels", first_label=0, classes=9, shape=(4, 4, 3))


def test_idx_bomb_is_refused(tmp_path):
    write_fashion(tmp_path, random_images(0, 4, 28, 1), np.zeros(4, int), 2)
    bomb = gzip.compress(bytes(1 << 20)) * 3000
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    message = bounded(lambda: build_source(DataConfig(name="fashion-mnist", path=tmp_path)).open())
    assert "unpacks to more than" in message


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\x08",
        b"\0\0\x08\3" + struct.pack(">III", 0, 28, 28),
        b"\0\0\x08\3" + b"\xff" * 12,
        b"\0\0\x08\0x",
        b"\0\0\x0d\1\0\0\0\0",
        b"\0\0\x08\2" + struct.pack(">II", 2, 784) + bytes(1568),
    ],
)
def test_invalid_idx_file_is_refused(tmp_path, content):
    write_fashion(tmp_path, random_images(0, 4, 28, 1), np.zeros(4, int), 2)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DiffctlError, match="train"):
        build_source(DataConfig(name="fashion-mnist", path=tmp_path)).open()
