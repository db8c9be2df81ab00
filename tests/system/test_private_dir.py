"""The folder of the devices' locks, in a place where other users write, too."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.system import devices
from diffusion.system.devices import make_private_dir
from diffusion.system.errors import DiffctlError


def link(path: Path) -> None:
    target = path.with_name("target")
    target.mkdir(0o700)
    path.symlink_to(target)


def open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def anothers(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can make a folder that is another user's")
    path.mkdir(0o700)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (link, "is a link"),
        (lambda path: path.symlink_to("nowhere"), "is a link"),
        (lambda path: path.write_text(""), "is not a folder"),
        (open_to_others, "is open to others (mode 0755, not 0700)"),
        (anothers, "belongs to another user (uid 65534)"),
    ],
    ids=["a link", "a link to nothing", "a file", "open to others", "another user's"],
)
def test_lock_folder_open_to_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "diffctl-devices-0"
    plant(folder)
    monkeypatch.setattr(devices, "LOCK_DIR", folder)
    with pytest.raises(DiffctlError) as error, devices.acquire_lock(["a"]):
        pass
    assert str(error.value) == f"{folder} {message}: remove it, or set TMPDIR to your own folder"
    assert not list(tmp_path.rglob("*.lock"))


def test_private_folder_is_created_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = os.umask(0)
    try:
        folder = make_private_dir(tmp_path / "a")
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_private_dir(folder) == folder
    monkeypatch.setattr(devices, "LOCK_DIR", folder)
    with devices.acquire_lock(["GPU-a"]):
        assert (folder / "GPU-a.lock").exists()


def test_link_as_device_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LOCK_DIR", tmp_path)
    (tmp_path / "GPU-a.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(DiffctlError, match="is a link"), devices.acquire_lock(["GPU-a"]):
        pass
    assert not (tmp_path / "precious").exists()
