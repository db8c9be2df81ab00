"""Real images and a model: `diffctl encode`, `interpolate` and `nll`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import argument, command, option, out_option, shared_options
from cli.shared.options import JsonOptions, ModelOptions, Spacing, StorePath
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_SEED, MAX_STEPS
from diffusion.system.output_paths import check_output

MAX_FRAMES = 10_000
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass.")
]


@shared_options
class CodeOptions(JsonOptions, ModelOptions):
    """The options of DDIM inversion."""

    store: StorePath = None
    steps: int = option("DDIM steps in each direction.", min=1, max=MAX_STEPS, default=100)
    spacing: Spacing = option("The times of the steps.", default=Spacing["uniform"])

    def refuse_idle_store(self, names: list[str]) -> None:
        """Raise UsageError if a store is given and no image is a number in it."""
        is_idle = not any(name.isdecimal() for name in names)
        self.refuse_idle("store", is_idle, "where all images are files")


@command("cli.actions.image_analysis:encode", "loading the model")
class Encode(CodeOptions):
    """Encode images as noise by DDIM inversion (η = 0).

    Also prints the error of the reconstruction.
    """

    out: Path = out_option("FILE.npz (codes) or .png (images, codes, reconstructions).", ".npz", ".png")
    images: list[str] | None = argument("Files or numbers in the store. [default: first --num]", default=None)
    num: int = option("Number of images from the store.", "--num", "-n", min=1, max=MAX_HELD, default=16)
    klass: str | None = option("A class by name or number. [default: the image's]", "--class", default=None)
    batch_size: BatchSize = 64

    def check(self) -> None:
        """Raise UsageError if an option has no effect."""
        super().check()
        self.refuse_idle("num", bool(self.images), "with named images")
        self.refuse_idle_store(self.images or ["0"])


@command("cli.actions.image_analysis:interpolate", "loading the model")
class Interpolate(CodeOptions):
    """Interpolate between two images by slerp of their codes."""

    first: str = argument("An image file, or a number in the store.")
    second: str = argument("Another one.")
    out: Path = out_option("FILE.png (one row) or .gif.", ".png", ".gif")
    frames: int = option("Number of images, both ends included.", min=2, max=MAX_FRAMES, default=9)
    klass: str | None = option(
        "The class of all images. [default: of the nearer end, if any]", "--class", default=None
    )

    def check(self) -> None:
        """Raise UsageError if an option has no effect."""
        super().check()
        self.refuse_idle_store([self.first, self.second])


@command("cli.actions.image_analysis:compute_nll", "loading the model")
class Nll(JsonOptions, ModelOptions):
    """Compute bits per dimension of images: their variational bound, or the likelihood by an ODE.

    The probability-flow ODE is for continuous processes, such as edm and flow, which have no bound.
    """

    out: Path = out_option(
        "FILE.png of the terms by t; .csv has the values.", ".png", default=Path("plots/nll.png")
    )
    store: StorePath = None
    num: int | None = option("Images. [default: all]", "--num", "-n", min=1, max=MAX_COUNT, default=None)
    steps: int | None = option(
        "Evenly spaced timesteps, or steps of the ODE. [default: all, or 64]",
        min=1,
        max=MAX_STEPS,
        default=None,
    )
    seed: int = option("The seed of the noise.", min=0, max=MAX_SEED, default=0)
    batch_size: BatchSize = 64

    def check(self) -> None:
        """Raise UsageError if the CSV file cannot be written."""
        super().check()
        check_output(self.out.with_suffix(".csv"), "--out, as .csv,")
