"""`diffctl encode`, `interpolate` and `nll`: real images and a model."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import (
    AsJson,
    Champion,
    ModelFile,
    RunId,
    Selection,
    Spacing,
    StorePath,
    check_output_suffix,
    file_option,
    refuse_idle,
)
from cli.shared.startup_message import begin
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_SEED, MAX_STEPS
from diffusion.system.output_paths import check_output

MAX_FRAMES = 10_000


Steps = Annotated[
    int,
    typer.Option("--steps", min=1, max=MAX_STEPS, help="DDIM steps in each direction."),
]


def encode(
    context: typer.Context,
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.npz (codes) or .png (images, codes, reconstructions)."),
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Files, or numbers in the store. [default: the first --num]")
    ] = None,
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="Number of images from the store.")
    ] = 16,
    store: StorePath = None,
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: the image's own]")
    ] = None,
    steps: Steps = 100,
    spacing: Annotated[Spacing, typer.Option("--spacing", help="The spacing of the timesteps.")] = Spacing[
        "uniform"
    ],
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Encode images as noise by DDIM inversion (η = 0).

    Also prints the error of the reconstruction.
    """
    check_output_suffix(out, (".npz", ".png"))
    refuse_idle(context, "num", bool(images), "with named images")
    _refuse_idle_store(context, images or ["0"])
    begin("loading the model", as_json)
    from cli.actions import image_codes

    selection = Selection(model, run_id, champion)
    image_codes.encode(out, images, num, store, klass, steps, spacing, batch_size, selection, as_json)


def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="An image file, or a number in the store.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png (one row) or .gif."),
    ],
    frames: Annotated[
        int, typer.Option("--frames", min=2, max=MAX_FRAMES, help="Number of images, both ends included.")
    ] = 9,
    store: StorePath = None,
    klass: Annotated[
        str | None,
        typer.Option("--class", help="The class of all images. [default: of the nearer end, if any]"),
    ] = None,
    steps: Steps = 100,
    spacing: Annotated[Spacing, typer.Option("--spacing", help="The spacing of the timesteps.")] = Spacing[
        "uniform"
    ],
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Interpolate between two images by slerp of their codes."""
    check_output_suffix(out, (".png", ".gif"))
    _refuse_idle_store(context, [first, second])
    begin("loading the model", as_json)
    from cli.actions import image_codes

    image_codes.interpolate(
        first, second, out, frames, store, klass, steps, spacing, Selection(model, run_id, champion), as_json
    )


def _refuse_idle_store(context: typer.Context, names: list[str]) -> None:
    """Raise UsageError if a store is given and no image is a number in it."""
    refuse_idle(context, "store", not any(name.isdecimal() for name in names), "where all images are files")


def nll(
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png with the terms by t; a .csv has their values."),
    ] = Path("plots/nll.png"),
    store: StorePath = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_COUNT, help="Number of images. [default: all]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MAX_STEPS, help="Evenly spaced timesteps. [default: all T]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Compute the variational bound of images, in bits per dimension."""
    check_output_suffix(out, (".png",))
    check_output(out.with_suffix(".csv"), "--out, as .csv,")
    begin("loading the model", as_json)
    from cli.actions import nll_bound

    nll_bound.compute_nll(
        out, store, num, steps, seed, batch_size, Selection(model, run_id, champion), as_json
    )
