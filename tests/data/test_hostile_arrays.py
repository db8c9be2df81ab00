"""npz files with false headers or bombs end in one sentence, within time and memory limits."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.file_arrays import open_npz
from diffusion.data.readers.image_batches import read_batch
from diffusion.evaluate.adhoc_inputs import open_images
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import bounded, write_zip_bomb
from tests.helpers.raw_data import planar, random_images

LARGE = 3000  # MB, from a few MB


def header(shape, kind="|u1", fortran=False):
    text = repr({"descr": kind, "fortran_order": fortran, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write_member(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "head",
    [
        header((10**9, 100, 100, 100)),
        header((-1, 8, 8, 3)),
        header((2, 8, 8, 3), "|O"),
        header((2, 8, 8, 3), [("a", "|u1")]),
        header((2, 8, 8, 3), ("|u1", (7,))),
        header((2, 8, 8, 3), fortran=True),
        header((2, 8, 8, 3), "|u1,|u1"),
        header((2.0, 8, 8, 3)),
        header("x"),
        header([2, 8, 8, 3]),
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '''   ",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 9000,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"",
    ],
)
def test_npz_with_false_header_is_refused(tmp_path, head):
    path = write_member(tmp_path / "x.npz", "arr_0.npy", head + bytes(384))
    assert "is not a complete zip or npz" in bounded(lambda: open_images(path).images.shape)


def test_npz_bomb_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    write_zip_bomb(path, "arr_0.npy", header((LARGE, 1024, 1024, 1)), LARGE)
    assert path.stat().st_size < 5 << 20
    message = bounded(lambda: open_images(path).images.shape)
    assert "arr_0.npy unpacks to 3.1 GB" in message


def test_images_larger_than_memory_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", random_images(0, 3, 8))
    monkeypatch.setattr("diffusion.evaluate.adhoc_inputs.machine_memory", lambda: (10**6, 575))
    with pytest.raises(DiffctlError, match=r"x\.npz take .* of memory"):
        open_images(tmp_path / "x.npz")
    monkeypatch.setattr("diffusion.evaluate.adhoc_inputs.machine_memory", lambda: (10**6, 576))
    assert len(open_images(tmp_path / "x.npz")) == 3


def test_mismatched_labels_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", data=np.zeros((2, 48), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(DiffctlError, match=r"labels \(3,\)"):
        read_batch(tmp_path / "x.npz", "labels", first_label=0, classes=9, pixels=48)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    cut=st.integers(1, 100),
    how=st.sampled_from(["shorter", "gone", "another", "a pipe"]),
    packed=st.booleans(),
)
def test_changing_files_are_read_or_refused(tmp_path_factory, cut, how, packed):
    folder = tmp_path_factory.mktemp("changing")
    path = folder / ("x.npz" if packed else "x")
    data = {"data": np.zeros((200, 1000), np.uint8), "labels": [0] * 200}
    if packed:
        np.savez(path, **data)
    else:
        path.write_bytes(pickle.dumps(data, 4))
    images, _ = read_batch(path, "labels", first_label=0, classes=1, pixels=1000)
    if how == "shorter":
        os.truncate(path, path.stat().st_size * cut // 101)
    elif how == "gone":
        path.unlink()
    elif how == "another":
        np.savez(folder / "other.npz", data=np.zeros((cut, 7)))
        os.replace(folder / "other.npz", path)
    elif packed:
        path.unlink()
        os.mkfifo(path)
    message = bounded(lambda: images.read(0, 200).shape)
    assert str(path) in message or message == "(200, 1000)"


def test_replaced_npz_is_opened_again(tmp_path):
    for value in (1, 2):
        np.savez(tmp_path / "new.npz", data=np.full((3, 2), value, np.uint8))
        os.replace(tmp_path / "new.npz", tmp_path / "x.npz")
        assert open_npz(tmp_path / "x.npz", "data").read(0, 3).tolist() == [[value] * 2] * 3


def test_empty_batch_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", data=planar(random_images(0, 2, 4))[:0], labels=np.empty(0, int))
    with pytest.raises(DiffctlError, match="labels are not"):
        read_batch(tmp_path / "x.npz", "labels", first_label=1, classes=9, pixels=48)
