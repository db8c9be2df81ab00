"""Regular files are read; anything else is refused without blocking."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import open_regular, read_regular, read_regular_text
from tests.helpers import generated_paths as at
from tests.helpers.damaged_bytes import bounded


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (at.a_fifo, "not a regular file"),
        (at.a_socket, "No such device"),
        (at.an_endless_device, "not a regular file"),
        (at.a_folder, "Is a directory"),
        (at.a_loop, "Too many levels"),
        (at.a_dangling_link, "No such file"),
    ],
)
def test_special_files_are_refused_at_once(tmp_path, make, why):
    make(tmp_path, "x")
    message = bounded(lambda: read_regular_text(tmp_path / "x"))
    assert message.startswith(f"{tmp_path / 'x'} cannot be read (")
    assert why in message


def test_linked_file_is_read_and_closed(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    before = os.listdir("/proc/self/fd")
    assert read_regular(tmp_path / "b", 7) == read_regular(os.fsencode(tmp_path / "b"), 7) == b"content"
    with pytest.raises(OSError, match=r"larger than 0\.0 MB"):
        read_regular(tmp_path / "b", 6)
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"content"
    assert os.listdir("/proc/self/fd") == before


def test_huge_file_is_refused(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    assert "larger than 33.6 MB" in bounded(lambda: read_regular_text(tmp_path / "x"))


def test_undecodable_text_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"ab\xff")
    with pytest.raises(DiffctlError, match="x is not text in UTF-8"):
        read_regular_text(tmp_path / "x")


@given(st.binary(max_size=20))
def test_any_name_becomes_one_printable_line(name):
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode()
