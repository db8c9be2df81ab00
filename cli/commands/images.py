"""Real images through a model: their codes, and strips between two of them."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import (
    Champion,
    ModelFile,
    RunId,
    Spacing,
    StorePath,
    check_output_suffix,
    file_option,
    refuse_idle,
)
from cli.shared.startup_message import begin
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_SEED, MAX_STEPS
from diffusion.system.output_paths import check_output

MAX_FRAMES = 10_000  # of a strip


Steps = Annotated[
    int, typer.Option("--steps", min=1, max=MAX_STEPS, help="DDIM steps each way; more are more exact.")
]


AsJson = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]


def encode(
    context: typer.Context,
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.npz (the codes), or .png (image, code and what comes back)."),
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Files, or numbers in the store. [default: its first --num]")
    ] = None,
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="How many images of the store.")
    ] = 16,
    store: StorePath = None,
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: the image's own]")
    ] = None,
    steps: Steps = 100,
    spacing: Annotated[Spacing, typer.Option("--spacing", help="Which timesteps are visited.")] = Spacing[
        "uniform"
    ],
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images at a time.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Find the noise from which unclipped DDIM at η = 0 makes the images, and how close it comes to them."""
    check_output_suffix(out, (".npz", ".png"))
    refuse_idle(context, "num", bool(images), "with named images")
    _refuse_idle_store(context, images or ["0"])
    begin("loading the model", as_json)
    from cli.actions import image_codes

    image_codes.encode(
        out, images, num, store, klass, steps, spacing, batch_size, model, run_id, champion, as_json
    )


def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="An image file, or a number in the store.")],
    second: Annotated[str, typer.Argument(help="Likewise.")],
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png (a strip) or .gif."),
    ],
    frames: Annotated[
        int, typer.Option("--frames", min=2, max=MAX_FRAMES, help="Images, the two ends included.")
    ] = 9,
    store: StorePath = None,
    klass: Annotated[
        str | None,
        typer.Option("--class", help="The class of all images. [default: none, or that of the nearer end]"),
    ] = None,
    steps: Steps = 100,
    spacing: Annotated[Spacing, typer.Option("--spacing", help="Which timesteps are visited.")] = Spacing[
        "uniform"
    ],
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Make the images between two images: walk an arc between their codes and denoise each point."""
    check_output_suffix(out, (".png", ".gif"))
    _refuse_idle_store(context, [first, second])
    begin("loading the model", as_json)
    from cli.actions import image_codes

    image_codes.interpolate(
        first, second, out, frames, store, klass, steps, spacing, model, run_id, champion, as_json
    )


def _refuse_idle_store(context: typer.Context, names: list[str]) -> None:
    """UsageError when a store was given and no image is named by its number there."""
    refuse_idle(context, "store", not any(name.isdecimal() for name in names), "where all images are files")


def nll(
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png, the terms by t; their values go to a .csv beside it."),
    ] = Path("plots/nll.png"),
    store: StorePath = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_COUNT, help="Images. [default: all]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MAX_STEPS, help="Timesteps, evenly spread. [default: all T]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images at a time.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Bound the negative log-likelihood of images, in bits per dimension: one pass over all timesteps."""
    check_output_suffix(out, (".png",))
    check_output(out.with_suffix(".csv"), "--out, as .csv,")
    begin("loading the model", as_json)
    from cli.actions import nll_bound

    nll_bound.compute_nll(out, store, num, steps, seed, batch_size, model, run_id, champion, as_json)
