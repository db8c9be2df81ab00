"""Pickles that run in circles, or take all memory: one sentence, in bounds."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.class_names import MAX_NAME_LENGTH, class_names
from diffusion.data.data_config import DataConfig
from diffusion.data.file_arrays import integers
from diffusion.data.readers import pickles
from diffusion.data.readers.pickles import read_pickle
from diffusion.data.source_registry import build_source
from diffusion.data.sources.cifar import CIFAR10
from diffusion.data.sources.mini_imagenet import read_part
from diffusion.system.errors import DiffctlError
from tests.helpers.bounded_process import bounded
from tests.helpers.raw_data import random_images, write_cifar10

ALIKE = range(2**61 - 1, 100_000 * (2**61 - 1), 2**61 - 1)
BYTE = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
SHARED = b")q\x00" + b"h\x00\x86q\x00" * 60  # t = (t, t), 60 times
DIGITS = b"\x8b" + struct.pack("<i", 60_000) + b"\x7f" * 60_000
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01%b" + BYTE + b"\x89C\x00tb."
SPAN = b"\x8e" + struct.pack("<Q", 1 << 17) + bytes(1 << 17) + b"q\x00"
FORTRAN = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\x00\x00\x02\x00\x85" + BYTE + b"\x88h\x00tb"
HUNGRY = {
    "text of a tuple without end": b"c_codecs\nencode\n" + SHARED + b"X\x06\x00\x00\x00latin1\x86R.",
    "a name that is a tuple without end": SHARED + b"X\x01\x00\x00\x00x\x93.",
    "a dtype that is a tuple without end": b"cnumpy\ndtype\n" + SHARED + b"\x85R.",
    "a shape of long integers": ARRAY % (b"(" + DIGITS * 50 + b"t"),
    "a shape of many axes": ARRAY % (b"(" + b"K\x01" * 100 + b"t"),
    "an array of a number's bytes": b"cnumpy.core.multiarray\nscalar\n" + BYTE + b"J\xff\xff\xff\x7f\x86R.",
    "lists without end": b"](" + b"]" * 400_000 + b"e.",
    "one array again and again": b"](" + SPAN + FORTRAN * 10_000 + b"e.",
    "one text again and again": b"](X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x00"
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 10_000 + b"e.",
    "keys of one hash": b"}(" + b"".join(b"\x8a\x10" + one.to_bytes(16, "little") + b"N" for one in ALIKE)
    + b"u.",
}  # fmt: skip


@pytest.mark.parametrize("kind", HUNGRY)
def test_a_pickle_that_never_ends_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 200_000)
    (tmp_path / "batch").write_bytes(b"\x80\x04" + HUNGRY[kind])
    said = bounded(lambda: f"read {type(read_pickle(tmp_path / 'batch'))}")
    assert said.startswith(f"{tmp_path / 'batch'} is ")


@pytest.mark.parametrize("wide", [b"]q\x00(h\x00h\x00e", b"](" + SHARED + b"e"])
def test_labels_that_hold_themselves_are_refused(tmp_path, wide):
    (tmp_path / "batch").write_bytes(b"\x80\x02" + wide + b".")
    labels = read_pickle(tmp_path / "batch")
    with pytest.raises(TypeError):
        integers(labels)


def test_a_sparse_file_of_text_takes_no_memory(tmp_path):
    with open(tmp_path / "batch", "wb") as file:
        file.write(b"\x80\x04\x8d" + struct.pack("<Q", 30 << 30))
        file.truncate(40 + (30 << 30))
    assert "unfolds to more than data do" in bounded(lambda: read_pickle(tmp_path / "batch"))


@pytest.mark.parametrize(
    "names", [7, "cat", None, [1], [["a"]], [b"\xff"], ["a\n"], [""], ["a", "a"], ["x" * 300]]
)
def test_names_of_classes_are_text_or_refused(tmp_path, names):
    images = random_images(0, 12, 32)
    place = write_cifar10(tmp_path, images, np.zeros(12, int), 2)
    (place / CIFAR10.names).write_bytes(pickle.dumps({"label_names": names}, 2))
    with pytest.raises(DiffctlError, match=r"batches\.meta has"):
        build_source(DataConfig(name="cifar10", path=tmp_path)).open()


@given(st.lists(st.text(max_size=MAX_NAME_LENGTH + 1), max_size=4))
def test_class_names_stay_as_they_are_or_are_refused(names):
    good = len(set(names)) == len(names) and all(
        name and name.isprintable() and len(name) <= MAX_NAME_LENGTH for name in names
    )
    if good:
        assert class_names(names, "x") == tuple(names)
        return
    with pytest.raises(DiffctlError) as error:
        class_names(names, "x")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "rows",
    [
        {"a": [0], "b": [-1]},
        {"a": [0, 1], "b": [1]},
        {"a": [0]},
        {"a": [0, 2]},
        {},
        3,
        {"a": [[0], [1]]},
        {"a": "01"},
    ],
)
def test_each_image_has_one_class(tmp_path, rows):
    images = np.zeros((2, 84, 84, 3), np.uint8)
    (tmp_path / "x").write_bytes(pickle.dumps({"image_data": images, "class_dict": rows}, 3))
    with pytest.raises(DiffctlError, match="Mini-ImageNet"):
        read_part(tmp_path / "x")
