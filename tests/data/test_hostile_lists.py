"""IDX files of any content, and the search for files."""

import gzip
import os
import struct

import numpy as np
import pytest

from diffusion.data.data_config import DataConfig, build_source
from diffusion.downloads.fetch import MAX_DEPTH, find_file
from diffusion.system.errors import DiffctlError
from tests.helpers.damaged_bytes import bounded, write_gzip_bomb
from tests.helpers.raw_data import random_images, write_fashion

LARGE = 3000  # MB, from a few MB


def test_idx_bomb_is_refused(tmp_path):
    write_fashion(tmp_path, random_images(0, 4, 28, 1), np.zeros(4, int), 2)
    write_gzip_bomb(tmp_path / "train-images-idx3-ubyte.gz", b"", LARGE)
    message = bounded(lambda: build_source(DataConfig(name="fashion-mnist", path=tmp_path)).open())
    assert "unpacks to more than" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x46" + b"\0\0\0\1" * 70 + b"x",
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


def test_file_search_is_bounded(tmp_path):
    deep = tmp_path.joinpath(*"abcdefghi")
    deep.mkdir(parents=True)
    (deep / "x").touch()
    assert len("abcdefghi") == MAX_DEPTH + 1
    assert find_file(tmp_path, "x") is None
    assert find_file(tmp_path / "a", "x") == deep / "x"
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "b/c/x").touch()
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c/x")
    (tmp_path / "d").symlink_to(deep)
    (tmp_path / "x").symlink_to("x")
    assert find_file(tmp_path, "x") == tmp_path / "b/c/x"
