"""Pickles give plain containers and arrays, and run no other code."""

import collections
import functools
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.readers.pickles import LARGE, integers, plain_array, read_pickle
from diffusion.data.sources.cifar import CIFAR10
from diffusion.data.sources.mini_imagenet import read_part
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import bounded
from tests.helpers.raw_data import old_numpy_pickle, python2_pickle, random_images, write_cifar10

DTYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.dtype(">f8"), np.bool_, np.dtype(">u2")])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(max_dims=3, max_side=4))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**62), 2**62), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(value=VALUES, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_values_and_arrays_round_trip(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickle") / "value"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    np.testing.assert_equal(read_pickle(path), value)


@pytest.mark.parametrize("make", [python2_pickle, old_numpy_pickle, pickle.dumps])
def test_large_array_is_left_in_the_file(tmp_path, make):
    images = random_images(0, 40, 32)
    images[:20] = 7  # so that its first bytes are found at a wrong place before
    assert images.nbytes > LARGE
    (tmp_path / "batch").write_bytes(make({"before": bytes([7]) * 5000, "data": images, "after": [2]}))
    found = read_pickle(tmp_path / "batch")
    assert isinstance(found["data"], np.memmap)
    assert found["after"] == [2]
    np.testing.assert_array_equal(found["data"], images)


class Reduces:
    """Pickles as a call of anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


SYSTEM = Reduces(os.system, ("touch canary",))


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps({"labels": [1], "data": SYSTEM}, protocol) for protocol in (0, 2, 5)),
        pickle.dumps(Reduces(eval, ("__import__('os').system('touch canary')",))),
        pickle.dumps(Reduces(functools.partial, (os.system, "touch canary"))),
        pickle.dumps(Reduces(collections.OrderedDict, (), {"x": SYSTEM})),  # in a state
        pickle.dumps(np.array([SYSTEM], dtype=object)),
        pickle.dumps(Path("x")),
        b"cos\nsystem\n(S'touch canary'\ntR.",  # the classic one
        b"(S'touch canary'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch canary'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02Pid\n.",  # a persistent id
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__reduce_ex__\x93.",  # a dotted name
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",  # a dtype of objects
        b"\x80\x02cnumpy\ndtype\nX\x05\x00\x00\x00O,f4x\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    ],
)
def test_malicious_pickle_runs_nothing(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(DiffctlError, match=r"batch is (not a data file: it requires|damaged)"):
        read_pickle(tmp_path / "batch")
    assert not (tmp_path / "canary").exists()


def test_false_lengths_and_large_files_allocate_nothing(tmp_path):
    (tmp_path / "long").write_bytes(b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x.")
    assert "memory: is it the right file?" in bounded(lambda: read_pickle(tmp_path / "long"))
    with open(tmp_path / "sparse", "wb") as file:
        file.write(b"\x80\x04\x8d" + struct.pack("<Q", 30 << 30))
        file.truncate(40 + (30 << 30))
    assert "larger than 2.1 GB" in bounded(lambda: read_pickle(tmp_path / "sparse"))


@pytest.mark.parametrize("value", ["text", {"a": 1}, 3, [1.5], ["a"], [[0], [1]]])
def test_other_values_are_no_arrays(value):
    with pytest.raises(DiffctlError, match="x is"):
        plain_array(value, "x")
    with pytest.raises(DiffctlError, match="x is"):
        integers(value, "x")


@pytest.mark.parametrize(
    "names", [7, "cat", None, [1], [["a"]], [b"\xff"], ["a\n"], [""], ["a", "a"], ["x" * 300]]
)
def test_invalid_class_names_of_a_pickle_are_refused(tmp_path, names):
    folder = write_cifar10(tmp_path, random_images(0, 12, 32), np.zeros(12, int), 2)
    (folder / CIFAR10.names).write_bytes(pickle.dumps({"label_names": names}, 2))
    with pytest.raises(DiffctlError, match=r"batches\.meta has"):
        build_source(DataConfig(name="cifar10", path=tmp_path)).open()


@pytest.mark.parametrize(
    "rows", [{"a": [0], "b": [-1]}, {"a": [0, 1], "b": [1]}, {"a": [0, 2]}, {}, 3, {"a": [[0], [1]]}]
)
def test_mini_imagenet_needs_one_class_per_image(tmp_path, rows):
    images = np.zeros((2, 84, 84, 3), np.uint8)
    (tmp_path / "x").write_bytes(pickle.dumps({"image_data": images, "class_dict": rows}, 3))
    with pytest.raises(DiffctlError, match=r"x (has|does not have)|x: class_dict"):
        read_part(tmp_path / "x")
