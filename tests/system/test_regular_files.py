"""Regular files are read; anything else is refused without blocking."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import open_regular, read_regular, read_regular_text
from tests.helpers.damaged_bytes import bounded


def pipe(path):
    os.mkfifo(path)


def listener(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def circle(path):
    path.symlink_to(path.name)


KINDS = {
    "a pipe": (pipe, "not a regular file"),
    "a socket": (listener, "not a regular file"),
    "a link to a device without end": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "a link in a circle": (circle, "Too many levels"),
    "a link that leads nowhere": (lambda path: path.symlink_to("gone"), "No such file"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_are_refused_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make, why = KINDS[kind]
    make(tmp_path / "x")
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
