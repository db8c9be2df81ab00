import collections
import contextlib
import functools
import itertools
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffusion.data.file_arrays import NpzArray, StoredArray, file_array, integers, open_npz
from diffusion.data.readers.pickles import IN_MEMORY, read_pickle
from diffusion.system.errors import DiffctlError
from tests.helpers.raw_data import old_numpy_pickle, python2_pickle, random_images

KINDS = st.sampled_from([np.uint8, np.int64, np.float32, np.dtype(">f8"), np.bool_, np.dtype(">u2")])
ARRAYS = hnp.arrays(KINDS, hnp.array_shapes(max_dims=3, max_side=4))
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


def same(left, right):
    if isinstance(left, np.ndarray):
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and left.tobytes() == right.tobytes()  # bytes, for NaN is not itself
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right and type(left) is type(right)


@settings(deadline=None)
@given(value=VALUES, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_values_and_arrays_come_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickle") / "value"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert same(value, read_pickle(path))


@settings(deadline=None, max_examples=25)
@given(array=ARRAYS)
def test_old_pickles_come_back(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("pickle")
    value = {"data": array, "names": ["a", "é"], "labels": [1, 2, 300, 70000]}
    (folder / "two").write_bytes(python2_pickle(value))
    (folder / "three").write_bytes(old_numpy_pickle(value, 3))
    for path in folder.iterdir():
        assert same(value, read_pickle(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_special_containers_and_layouts(tmp_path, protocol):
    shared = np.arange(4)
    value = {
        "ordered": collections.OrderedDict(a=[1]),
        "scalar": np.int64(7),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "twice": [shared, shared],
        "long": 2**2000,
    }
    (tmp_path / "value").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_pickle(tmp_path / "value")
    assert found["ordered"] == {"a": [1]}
    assert found["scalar"] == 7
    assert found["long"] == 2**2000
    np.testing.assert_array_equal(found["fortran"], value["fortran"])
    np.testing.assert_array_equal(found["twice"][1], shared)


@pytest.mark.parametrize(
    "make", [python2_pickle, functools.partial(old_numpy_pickle, protocol=3), pickle.dumps]
)
def test_a_large_array_stays_in_the_file(tmp_path, make):
    images = random_images(0, 40, 32)
    assert images.nbytes > IN_MEMORY
    (tmp_path / "batch").write_bytes(make({"before": 1, "data": images, "after": [2]}))
    found = read_pickle(tmp_path / "batch")
    assert isinstance(found["data"], StoredArray)
    assert (found["before"], found["after"]) == (1, [2])
    np.testing.assert_array_equal(found["data"].read(5, 9), images[5:9])
    np.testing.assert_array_equal(found["data"].read(0, 40), images)


class Reduces:
    """Pickles as a call of anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def canary(path):
    return f"touch {path}"


def evil(path: Path) -> dict[str, object]:
    command = canary(path)
    return {
        "os.system": Reduces(os.system, (command,)),
        "eval": Reduces(eval, (f"__import__('os').system({command!r})",)),
        "exec": Reduces(exec, (f"__import__('os').system({command!r})",)),
        "Popen": Reduces(subprocess.Popen, (["touch", str(path)],)),
        "partial": Reduces(functools.partial, (os.system, command)),
        "a state": Reduces(collections.OrderedDict, (), {"x": Reduces(os.system, (command,))}),
        "an object array": np.array([Reduces(os.system, (command,))], dtype=object),
        "an iterator": Reduces(map, (os.system, [command])),
        "a plain class": Path(path),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", list(evil(Path("x"))))
def test_a_malicious_pickle_runs_nothing_and_is_named(tmp_path, protocol, name):
    path = tmp_path / "data_batch_1"
    path.write_bytes(
        pickle.dumps({"labels": [1], "data": [evil(tmp_path / "canary")[name]]}, protocol=protocol)
    )
    with pytest.raises(DiffctlError, match="data_batch_1 is not a data file: it asks for") as error:
        read_pickle(path)
    assert "not run" in str(error.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch canary'\ntR.",  # the classic one
        b"(S'touch canary'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch canary'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02Pid\n.",  # a persistent id
        b"\x80\x02cnumpy\nndarray\n}b.",  # a state for a class that is admitted
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R}q\x00X\x01\x00\x00\x00xcos\nsystem\nsb.",
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__reduce_ex__\x93.",  # a dotted name
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",  # a dtype of objects
        b"\x80\x02cnumpy\ndtype\nX\x05\x00\x00\x00O,f4x\x85R.",
    ],
)
def test_hand_made_attacks_are_refused(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_bytes(content)
    with pytest.raises(DiffctlError, match="evil"):
        read_pickle(tmp_path / "evil")
    assert not (tmp_path / "canary").exists()


def test_nested_tuples_as_keys_do_not_hang(tmp_path):
    body = b")q\x00" + b"h\x00\x86q\x00" * 200  # t = (t, t), 200 times: its hash would take for ever
    (tmp_path / "bomb").write_bytes(b"\x80\x02}" + body + b"K\x01s.")
    with pytest.raises(DiffctlError, match="a key is a tuple"):
        read_pickle(tmp_path / "bomb")


@settings(deadline=None, max_examples=300)
@given(
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    cut=st.none() | st.integers(0, 10**6),
    junk=st.binary(max_size=40),
)
def test_damage_is_one_sentence(tmp_path_factory, at, bit, cut, junk):
    content = bytearray(pickle.dumps({"data": np.arange(12).reshape(3, 4), "labels": [1, 2, 3]}, protocol=4))
    content[at % len(content)] ^= 1 << bit
    if cut is not None:
        content = content[: cut % len(content)] + junk
    path = tmp_path_factory.mktemp("damage") / "batch"
    path.write_bytes(content)
    with contextlib.suppress(DiffctlError):  # anything else fails
        read_pickle(path)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path):
    (tmp_path / "long").write_bytes(b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x.")
    with pytest.raises(DiffctlError, match="ends too early"):
        read_pickle(tmp_path / "long")


@settings(deadline=None, max_examples=20)
@given(
    compressed=st.booleans(), cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 2**32 - 1)
)
def test_an_npz_array_reads_any_range_in_any_order(tmp_path_factory, compressed, cuts, seed):
    images = random_images(seed, 60, 5)
    path = tmp_path_factory.mktemp("npz") / "batch.npz"
    (np.savez_compressed if compressed else np.savez)(path, data=images, labels=np.arange(60))
    array = open_npz(path, "data")
    assert (array.shape, array.dtype) == (images.shape, images.dtype)
    for start, stop in itertools.pairwise(cuts):
        low, high = sorted((start, stop))
        np.testing.assert_array_equal(array.read(low, high), images[low:high])


def test_an_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", data=np.array([Reduces(os.system, ("true",))], dtype=object))
    with pytest.raises(DiffctlError, match="not of plain numbers"):
        open_npz(tmp_path / "objects.npz", "data")


def test_an_npz_without_the_array_says_so(tmp_path):
    np.savez(tmp_path / "other.npz", images=np.arange(3))
    with pytest.raises(DiffctlError, match="no array named data"):
        open_npz(tmp_path / "other.npz", "data")


@pytest.mark.parametrize("value", ["text", {"a": 1}, 3, [1.5], ["a"]])
def test_what_is_no_array_is_not_taken_for_one(value):
    with pytest.raises(TypeError):
        file_array(value)
    with pytest.raises(TypeError):
        integers(value)


def test_integers_reads_lists_and_arrays_wherever_they_lie(tmp_path):
    np.savez(tmp_path / "labels.npz", labels=np.arange(5, dtype=np.int16))
    lying = open_npz(tmp_path / "labels.npz", "labels")
    assert isinstance(lying, NpzArray)
    for value in ([0, 1, 2, 3, 4], np.arange(5, dtype=np.uint8), lying):
        np.testing.assert_array_equal(integers(value), np.arange(5))
