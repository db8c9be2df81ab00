"""Atomic folders: leftovers of killed processes are removed, folders in progress are not. JSON as classes."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from diffusion.system.checksums import JsonObject, parse_json, read_json
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import atomic_folder, read_regular, read_regular_text, remove_leftovers
from diffusion.system.section import Section, brief
from tests.helpers import special_paths as at
from tests.helpers.damaged_bytes import bounded


def killed_while_making(path: Path) -> None:
    """Start a folder in a process that is killed."""

    def make() -> None:
        with atomic_folder(path) as made:
            (made / "half").write_text("of it")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=make)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path, other = tmp_path / "made", tmp_path / "made-otherwise"
    killed_while_making(path)
    killed_while_making(other)
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(path) as made:
        (made / "whole").write_text("it is")
    assert (path / "whole").read_text() == "it is"
    (left,) = (entry.name for entry in tmp_path.iterdir() if entry != path)
    assert left.startswith(".made-otherwise.")
    remove_leftovers(other)
    assert list(tmp_path.iterdir()) == [path]


def test_folder_in_progress_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with atomic_folder(path) as first:
        (first / "by").write_text("first")
        remove_leftovers(path)
        with atomic_folder(path) as second:
            (second / "by").write_text("second")
        assert (path / "by").read_text() == "second"
        assert (first / "by").read_text() == "first"
    assert (path / "by").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as made:  # noqa: PT012
        (made / "half").write_text("of it")
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [path]


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
    (tmp_path / "a").write_bytes(b"conten\xff")
    (tmp_path / "b").symlink_to("a")
    before = os.listdir("/proc/self/fd")
    assert read_regular(tmp_path / "b", 7) == read_regular(os.fsencode(tmp_path / "b"), 7) == b"conten\xff"
    with pytest.raises(OSError, match=r"larger than 0\.0 MB"):
        read_regular(tmp_path / "b", 6)
    with pytest.raises(DiffctlError, match="b is not text in UTF-8"):
        read_regular_text(tmp_path / "b")
    assert os.listdir("/proc/self/fd") == before


@given(st.binary(max_size=20))
def test_any_name_becomes_one_printable_line(name):
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode()


class _Inner(Section):
    size: int = Field(gt=0, le=100)


class _Outer(Section):
    name: str
    inner: _Inner
    many: dict[str, _Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "a", "inner": {"size": ' + "9" * 5000 + "}}", "number out of range"),
        ("[" * 100_000, "recursion limit"),
        ('{"name": "a", "inner": {"size": NaN}}', "inner.size"),
        ('{"name": "a", "inner": {"size": 3, "s": 1}}', "inner.s: unknown key, allowed are size"),
        ('{"name": "a", "inner": {"size": 3}, "many": {"x": {"size": 3, "s": 1}}}', "many.x.s: unknown key"),
        ("", "Invalid JSON"),
    ],
)
def test_errors_are_short(text: str, expected: str) -> None:
    with pytest.raises(DiffctlError) as caught:
        parse_json(text, _Outer, "here")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "b" * 100}))
    assert read_json(path, JsonObject) == {"a": "b" * 100}
    with pytest.raises(DiffctlError, match="larger than 50 bytes"):
        read_json(path, JsonObject, max_bytes=50)


def test_brief_is_one_short_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief("a\nb") == r"'a\nb'"
    assert len(brief("x" * 10_000)) < 130
    assert brief(10**5000) == "an unprintable int"
    assert brief(deep) == "an unprintable list"
