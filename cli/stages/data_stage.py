"""The stage `data`: download and prepare the data set."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import typer

from cli.shared.progress import Show, progress
from diffusion.data.data_config import DataConfig
from diffusion.data.prepare import prepare
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED
from diffusion.system.params import load_section
from diffusion.system.signals import stop_request


def run_stage() -> None:
    """Prepare the data of params.yaml."""
    with show_preparation() as (show, downloading):
        prepare(load_section("data", DataConfig), PREPARED, show, downloading)
    show_prepared(PREPARED)


Downloading = Callable[[int, int, str], None]
"""Called with the bytes done, the total, and the file name."""


@contextmanager
def show_preparation() -> Iterator[tuple[Show, Downloading]]:
    """Yield callbacks for images and for downloaded bytes; a signal stops the work at the next call."""
    with stop_request() as stop, progress("data") as images, _downloads() as bytes_of:

        def show(done: int, total: int, more: str = "") -> None:
            images(done, total, more)
            stop.raise_if_set()

        def downloading(done: int, total: int, name: str) -> None:
            bytes_of(done, total, name)
            stop.raise_if_set()

        yield show, downloading


@contextmanager
def _downloads() -> Iterator[Downloading]:
    """Yield a callback with a progress line for each file."""
    current = ""
    show: Show | None = None
    with ExitStack() as line:

        def shown(done: int, total: int, name: str) -> None:
            nonlocal current, show
            if show is None or name != current:
                line.close()
                current, show = name, line.enter_context(progress(name, unit="bytes"))
            show(done, total, "")

        yield shown


def show_prepared(folder: Path) -> None:
    """Print the contents of a folder of prepared splits."""
    splits = ("train", "test")
    stores = {split: open_store(folder / split, PreparedMeta, unverified=True) for split in splits}
    counts = ", ".join(f"{len(store):,} {split}" for split, store in stores.items())
    meta = stores["train"].meta
    shape = f"{meta['image_size']}×{meta['image_size']}×{meta['channels']}"
    labels = f"{len(meta['classes'])} classes" if meta["classes"] else "no labels"
    typer.echo(f"{folder}: {counts} images of {shape}, {labels}")
    if meta.get("skipped"):
        typer.echo(
            f"left out: {sum(meta['skipped'].values()):,} raw files, listed in {folder / 'skipped.csv'}"
        )
