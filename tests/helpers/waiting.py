"""Waiting for something to happen, also for what another test process makes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion.system.locks import file_lock


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until it is true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.01)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills in the first process of the session that needs it."""
    base = factory.getbasetemp()
    folder = (base.parent if "popen-gw" in base.name else base) / name
    with file_lock(folder.with_name(f"{name}.lock")):
        if not (folder / ".made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / ".made").touch()
    return folder
