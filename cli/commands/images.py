"""Real images and a model: `diffctl encode`, `interpolate` and `nll`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import command
from cli.shared.options import (
    JsonOptions,
    ModelOptions,
    Spacing,
    StorePath,
    check_output_suffix,
    out_option,
)
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_SEED, MAX_STEPS
from diffusion.system.output_paths import check_output

MAX_FRAMES = 10_000
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass.")
]


@dataclass(kw_only=True)
class CodeOptions(JsonOptions, ModelOptions):
    """The options of DDIM inversion."""

    store: StorePath = None
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="DDIM steps in each direction.")] = 100
    spacing: Annotated[Spacing, typer.Option(help="The times of the steps.")] = Spacing["uniform"]

    def refuse_idle_store(self, names: list[str]) -> None:
        """Raise UsageError if a store is given and no image is a number in it."""
        is_idle = not any(name.isdecimal() for name in names)
        self.refuse_idle("store", is_idle, "where all images are files")


@command("cli.actions.image_analysis:encode", "loading the model")
class Encode(CodeOptions):
    """Encode images as noise by DDIM inversion (η = 0).

    Also prints the error of the reconstruction.
    """

    out: Annotated[Path, out_option(help="FILE.npz (codes) or .png (images, codes, reconstructions).")]
    images: Annotated[
        list[str] | None, typer.Argument(help="Files, or numbers in the store. [default: the first --num]")
    ] = None
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="Number of images from the store.")
    ] = 16
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: the image's own]")
    ] = None
    batch_size: BatchSize = 64

    def check(self) -> None:
        """Raise UsageError if the file cannot be written or an option has no effect."""
        super().check()
        check_output_suffix(self.out, (".npz", ".png"))
        self.refuse_idle("num", bool(self.images), "with named images")
        self.refuse_idle_store(self.images or ["0"])


@command("cli.actions.image_analysis:interpolate", "loading the model")
class Interpolate(CodeOptions):
    """Interpolate between two images by slerp of their codes."""

    first: Annotated[str, typer.Argument(help="An image file, or a number in the store.")]
    second: Annotated[str, typer.Argument(help="Another one.")]
    out: Annotated[Path, out_option(help="FILE.png (one row) or .gif.")]
    frames: Annotated[
        int, typer.Option(min=2, max=MAX_FRAMES, help="Number of images, both ends included.")
    ] = 9
    klass: Annotated[
        str | None,
        typer.Option("--class", help="The class of all images. [default: of the nearer end, if any]"),
    ] = None

    def check(self) -> None:
        """Raise UsageError if the file cannot be written or an option has no effect."""
        super().check()
        check_output_suffix(self.out, (".png", ".gif"))
        self.refuse_idle_store([self.first, self.second])


@command("cli.actions.image_analysis:compute_nll", "loading the model")
class Nll(JsonOptions, ModelOptions):
    """Compute the variational bound of images, in bits per dimension."""

    out: Annotated[Path, out_option(help="FILE.png with the terms by t; a .csv has their values.")] = Path(
        "plots/nll.png"
    )
    store: StorePath = None
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_COUNT, help="Number of images. [default: all]")
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Evenly spaced timesteps. [default: all T]")
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="The seed of the noise.")] = 0
    batch_size: BatchSize = 64

    def check(self) -> None:
        """Raise UsageError if a file cannot be written."""
        super().check()
        check_output_suffix(self.out, (".png",))
        check_output(self.out.with_suffix(".csv"), "--out, as .csv,")
