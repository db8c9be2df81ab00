"""The prepared digits and their reference, made once by each test process and copied by its tests."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

from cli.commands import pipeline
from diffusion.images.store import open_store, write_store
from diffusion.layout import HELD_OUT, PREPARED, REFERENCE
from tests.conftest import write_params


@functools.cache
def _prepared() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="diffctl-digits-"))
    atexit.register(shutil.rmtree, folder)
    write_params(folder)
    with contextlib.chdir(folder):
        pipeline.DataStage().run()
    return folder


@functools.cache
def _with_reference() -> Path:
    with contextlib.chdir(_prepared()):
        pipeline.ReferenceStage().run()
    return _prepared()


def copy_data(folder: Path) -> None:
    """Give the project the output of the stage `data` for the small digits profile."""
    shutil.copytree(_prepared() / PREPARED, folder / PREPARED)


def copy_reference(folder: Path) -> None:
    """Give the project the outputs of the stages `data` and `reference` for the small digits profile."""
    copy_data(folder)
    shutil.copytree(_with_reference() / REFERENCE, folder / REFERENCE)


def reverse_held_out_images() -> None:
    """Reverse the order of the prepared held-out images of the working directory, and nothing else."""
    store = open_store(HELD_OUT)
    assert store.labels is not None, "digits have labels"
    write_store(HELD_OUT, store.images[::-1].copy(), store.labels[::-1].copy(), store.meta)
