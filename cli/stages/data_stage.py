"""The stage `data`: download and prepare the data set."""

from contextlib import ExitStack

import typer

from cli.shared.console import Show, progress
from diffusion.data.data_config import DataConfig
from diffusion.data.prepare import prepare
from diffusion.images.image_size import format_size, height_and_width
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PREPARED
from diffusion.system.params import load_section, read_params
from diffusion.system.signals import stop_request


def run_stage(_: object) -> None:
    """Prepare the data of params.yaml and print its size.

    A signal stops a download at once, and the reading of images at the next report of progress.
    """
    with stop_request() as stop, progress("data") as show_images, ExitStack() as download_line:
        lines: dict[str, Show] = {}

        def show(done: int, total: int, more: str = "") -> None:
            show_images(done, total, more)
            stop.raise_if_set()

        def downloading(done: int, total: int, name: str) -> None:
            if name not in lines:
                download_line.close()
                lines[name] = download_line.enter_context(progress(name, unit="bytes"))
            lines[name](done, total)
            stop.raise_if_set()

        prepare(load_section("data", DataConfig), PREPARED, show, downloading)
    splits = ("train", "test")
    stores = {split: open_store(PREPARED / split, PreparedMeta, unverified=True) for split in splits}
    counts = ", ".join(f"{len(store):,} {split}" for split, store in stores.items())
    meta = stores["train"].meta
    shape = format_size((*height_and_width(meta["image_size"]), meta["channels"]))
    labels = f"{len(meta['classes'])} classes" if meta["classes"] else "no labels"
    typer.echo(f"{PREPARED}: {counts} images of {shape}, {labels}")
    if meta["classes"] and not read_params().get("model", {}).get("class_cond"):
        typer.echo(f"{labels} found; `model.class_cond: true` uses them")
    if meta.get("skipped"):
        typer.echo(f"left out: {sum(meta['skipped'].values()):,} raw files, see {PREPARED / 'skipped.csv'}")
