"""Real images through a model: their codes, and strips between two of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, resolve_model
from cli.shared.first_word import begin
from cli.shared.flags import refuse_idle
from cli.shared.images import StorePath
from cli.shared.names import Spacing
from cli.shared.outputs import file_option, writer_of
from cli.shared.progress import Show, progress
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.images.store import Images
    from diffusion.model.model_file import LoadedModel
    from diffusion.process.condition import Condition
    from diffusion.protocol.settings import SampleSettings

MOST_FRAMES = 10_000  # of a strip

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
    begin("loading the model", as_json)
    import numpy as np

    from diffusion.analysis.image_inputs import input_condition, load_first, load_input

    writer = writer_of(out, {".npz": _npz, ".png": _png})
    refuse_idle(context, "num", bool(images), "beside the images that are named")
    _refuse_idle_store(context, images or ["0"])
    loaded, settings = _load(resolve_model(model, run_id, champion), steps, spacing)
    artefact = loaded.artefact
    chosen = (
        [load_input(name, store, artefact) for name in images] if images else load_first(num, store, artefact)
    )
    pixels = np.stack([image.pixels for image in chosen])
    condition = input_condition(artefact, [image.label for image in chosen], klass)
    with progress("encode", unit="steps") as show:
        codes, back = _there_and_back(loaded, settings, pixels, condition, batch_size, show)
    writer(out, pixels, codes, back, condition.labels)
    error = float(np.abs(back.astype(int) - pixels).mean())
    made = {"out": str(out), "images": len(pixels), "steps": steps, "mean_pixel_error": round(error, 4)}
    said = f"{len(pixels)} image(s), which come back within {error:.2f} of 255 on average: {out}"
    typer.echo(json.dumps(made) if as_json else said)


def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="An image file, or a number in the store.")],
    second: Annotated[str, typer.Argument(help="Likewise.")],
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png (a strip) or .gif."),
    ],
    frames: Annotated[
        int, typer.Option("--frames", min=2, max=MOST_FRAMES, help="Images, the two ends included.")
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
    begin("loading the model", as_json)
    import numpy as np

    from diffusion.analysis import inversion
    from diffusion.analysis.image_inputs import end_condition, load_input
    from diffusion.images.pixels import to_nhwc

    writer = writer_of(out, {".png": _strip, ".gif": _morph})
    _refuse_idle_store(context, [first, second])
    loaded, settings = _load(resolve_model(model, run_id, champion), steps, spacing)
    ends = [load_input(name, store, loaded.artefact) for name in (first, second)]
    condition = end_condition(loaded.artefact, [end.label for end in ends], klass)
    pixels = np.stack([end.pixels for end in ends])
    with progress("interpolate", unit="steps") as show:
        strip = inversion.interpolate(
            loaded, settings, pixels, condition, frames, lambda a, b: show(a, b, "")
        )
    writer(out, to_nhwc(strip))
    made = {"out": str(out), "frames": frames, "steps": steps}
    typer.echo(json.dumps(made) if as_json else f"{frames} images from {first} to {second}: {out}")


def _refuse_idle_store(context: typer.Context, names: list[str]) -> None:
    """UsageError when a store was given and no image is named by its number there."""
    refuse_idle(context, "store", not any(name.isdecimal() for name in names), "where all images are files")


def _load(path: Path, steps: int, spacing: Spacing) -> "tuple[LoadedModel, SampleSettings]":
    from diffusion.model.model_file import load_model
    from diffusion.protocol.settings import SampleSettings
    from diffusion.system.devices import default_device

    return load_model(path, default_device()), SampleSettings(steps=steps, spacing=spacing.value)


def _there_and_back(
    loaded: "LoadedModel",
    settings: "SampleSettings",
    pixels: "Images",
    condition: "Condition",
    batch_size: int,
    show: Show,
) -> "tuple[Tensor, Images]":
    """The codes of the images, and the images that come back from them."""
    import torch

    from diffusion.analysis.inversion import decode_images, encode_images
    from diffusion.images.pixels import to_nhwc

    codes, back, done = [], [], 0
    total = 2 * settings.steps * -(-len(pixels) // batch_size)

    def step(*_: int) -> None:
        nonlocal done
        done += 1
        show(done, total, "")

    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        wanted = condition.rows(part)
        codes.append(encode_images(loaded, settings, pixels[part], wanted, step))
        back.append(decode_images(loaded, settings, codes[-1], wanted, step))
    return torch.cat(codes), to_nhwc(torch.cat(back))


def _npz(out: Path, pixels: "Images", codes: "Tensor", back: "Images", labels: "Tensor | None") -> None:
    """codes (N, C, H, W) float32, images and reconstructions (N, H, W, C) uint8, labels (N,) if any."""
    import numpy as np

    from diffusion.system.output_paths import write_output

    arrays = {"codes": codes.numpy(), "images": pixels, "reconstructions": back}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    write_output(out, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # numpy's stub


def _png(out: Path, pixels: "Images", codes: "Tensor", back: "Images", labels: "Tensor | None") -> None:
    """Three rows: the images, their codes (±2 σ from black to white) and what comes back."""
    import numpy as np

    from diffusion.images.pixels import to_nhwc, to_uint8

    _strip(out, np.concatenate([pixels, to_nhwc(to_uint8(codes / 2)), back]), columns=len(pixels))


def _strip(out: Path, images: "Images", columns: int | None = None) -> None:
    """The images in rows of `columns`, by default in one row."""
    from diffusion.images.pictures import enlarge, grid, png_bytes
    from diffusion.system.output_paths import write_output

    picture = enlarge(grid(images, columns or len(images)), images.shape[1])
    write_output(out, lambda file: file.write(png_bytes(picture)))


def _morph(out: Path, images: "Images") -> None:
    from diffusion.images.pictures import enlarge, gif_bytes
    from diffusion.system.output_paths import write_output

    write_output(out, lambda file: file.write(gif_bytes([enlarge(image, len(image)) for image in images])))
