"""Output paths of users: every kind of place is written or refused before the work."""

import errno
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import write_text
from diffusion.system.output_paths import check_output, check_output_folder, write_output, write_output_text
from tests.helpers import special_paths as at
from tests.helpers.disks import Mount
from tests.helpers.special_paths import Place

CONTENT = b"content" * 100


def opens(path: str) -> bool:
    """Return whether a plain open for writing succeeds, after its folders are created (the oracle)."""
    try:
        os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.ENXIO and os.path.exists(path)  # no reader
    return True


def is_refused(trial: Callable[[Path, str], None], path: Path, flag: str) -> bool:
    """Return whether a sentence refuses the path."""
    try:
        trial(path, flag)
    except UsageError as error:
        assert str(error).startswith(f"{flag} {printable(path)} ")  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017
        return True
    return False


def read_while(path: str, work: Callable[[], None]) -> bytes:
    """Return the content of the path after the work, or of the pipe during it."""
    if not Path(path).is_fifo():
        work()
        return Path(path).read_bytes()
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        work()
        return os.read(handle, 1 << 16)
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    "name", ["x.png", "a\nb.png", "\udcff.png", "é" * 30 + ".png", "x" * 251 + ".png", "x" * 252 + ".png"]
)
@pytest.mark.parametrize("place", [*at.ENDS, *map(at.linked, at.ENDS), at.linked(at.linked(at.file))])
def test_check_agrees_with_writing_and_with_open(tmp_path: Path, place: Place, name: str) -> None:
    try:
        path = place(tmp_path, name)
    except OSError:  # the place cannot be created
        return
    before = at.tree(tmp_path)
    taken = not is_refused(check_output, Path(path), "--out")
    assert at.tree(tmp_path) == before, "trying leaves no file behind"
    links = {entry: os.readlink(entry) for entry in before if os.path.islink(entry)}
    if taken:
        content = read_while(path, lambda: write_output(Path(path), lambda file: file.write(CONTENT)))
        assert content == (b"" if os.path.realpath(path) == "/dev/null" else CONTENT)
        assert {entry: os.readlink(entry) for entry in links} == links, "links are followed"
        assert not [entry for entry in at.tree(tmp_path) if entry.endswith(".tmp")]
    assert taken == opens(path)


def test_output_folder_is_new_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output_folder(tmp_path / "new", "FOLDER")
    (tmp_path / "full/folder").mkdir(parents=True)
    check_output_folder(tmp_path / "full/folder", "FOLDER")
    (tmp_path / "file").touch()
    assert is_refused(check_output_folder, tmp_path / "full", "FOLDER")
    assert is_refused(check_output_folder, tmp_path / "file", "FOLDER")
    monkeypatch.chdir(tmp_path / "full/folder")
    assert is_refused(check_output_folder, Path(), "FOLDER"), "the working directory"


@pytest.mark.parametrize(
    ("write", "linked"), [(write_output_text, ".dvc/cache/files/md5/0a/1234"), (write_text, "elsewhere")]
)
def test_link_of_a_stage_or_into_dvc_cache_is_replaced(tmp_path: Path, write, linked) -> None:
    target, out = tmp_path / linked, tmp_path / "model.safetensors"
    write_text(target, "of another commit")
    out.symlink_to(target)
    check_output(out, "--out")
    write(out, "new")
    assert (out.read_text(), target.read_text()) == ("new", "of another commit")


def test_closed_pipe_is_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read_a_little() -> None:
        with open(pipe, "rb", buffering=0) as file:
            file.read(1)

    reader = threading.Thread(target=read_a_little)
    reader.start()
    with pytest.raises(DiffctlError, match=f"the reader of {pipe} closed it early"):
        write_output(pipe, lambda file: file.write(bytes(1 << 22)))
    reader.join()


def refused(path: Path) -> None:
    """Run as nobody: exit 0 if the path is refused for lack of permission."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)
    try:
        check_output(path, "--out")
    except UsageError as error:
        os._exit(0 if "Permission denied" in str(error) else 2)
    os._exit(1)


@pytest.mark.parametrize("below", ["new.png", "folder/new.png", "there.png"])
def test_missing_permission_is_found_before_the_work(below: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # in /tmp, which every user may enter
        folder = Path(scratch)
        (folder / "there.png").touch(0o444)
        folder.chmod(0o555)
        process = multiprocessing.get_context("fork").Process(target=refused, args=[folder / below])
        process.start()
        process.join(60)
        folder.chmod(0o755)
    assert process.exitcode == 0


def test_full_disk_names_the_users_path(tmp_path: Path, mount: Mount) -> None:
    folder = mount(tmp_path / "disk", "64k")
    (folder / "a.png").write_bytes(b"before")
    link = tmp_path / "link.png"
    link.symlink_to(folder / "a.png")
    check_output(link, "--out")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_output(link, lambda file: file.write(bytes(100_000)))
    assert error.value.filename == str(link)
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert link.read_bytes() == b"before"
