"""Edits of pictures: `diffctl edit`."""

from pathlib import Path
from typing import Any

import typer

from cli.shared.command import argument, command, option, out_option
from cli.shared.options import JsonOptions, ModelSourceOptions, sampling_options
from diffusion.protocol.edits import MAX_SIGMA_Y, METHODS, OPERATORS
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD

app = typer.Typer()

KINDS = ("--mask", "--upscale", "--colorize", "--deblur", "--operator", "--strength")


@command(app, "cli.actions.images.edited_images:edit", "loading the model")
class Edit(JsonOptions, ModelSourceOptions):
    """Fill, enlarge, colour or sharpen pictures, or sample them again, by a model of such pictures.

    A picture of another size than the model's is cropped and resized. PNG has a row for each picture: the
    picture, what is measured of it, the results and their spread. Result J of picture K depends on the seed,
    on the picture and on the number K*NUM+J only. For process edm the spacing is karras by default.
    """

    source: Path = argument(
        "A picture, or pictures: a folder, an npz (arr_0) or a store.", metavar="PICTURES"
    )
    out: Path = out_option(
        "FILE.png, FILE.npz (results as arr_0), or a new store FOLDER.", ".png", ".npz", ""
    )
    mask: str | None = option(
        "Fill pixels: the white ones of a picture, the transparent ones of PICTURES, or a box in pixels.",
        metavar="FILE|alpha|LEFT,TOP,RIGHT,BOTTOM",
        paths=True,
    )
    upscale: int | None = option("Enlarge pictures by this factor.", min=2, max=64)
    colorize: bool = option("Colour grey pictures.")
    deblur: float | None = option(
        "Sharpen pictures blurred by a Gaussian of this width.", metavar="SIGMA", min=0.01, max=100
    )
    operator: str | None = option(
        f"Any operator, of {', '.join(OPERATORS)}: such as gray+downsample:2.", metavar="TEXT"
    )
    strength: float | None = option("Sample again from noise of this strength, 0 to 1.", min=0.01, max=1)
    degrade: bool = option("PICTURES are originals: measure them first.")
    sigma_y: float = option(
        "The noise of the measurement, in units of [-1, 1].", "--sigma-y", min=0, max=MAX_SIGMA_Y, default=0.0
    )
    method: str | None = option(
        f"{', '.join(METHODS)}. [default: ddnm; sdedit with --strength]", metavar="NAME"
    )
    method_option: list[str] | None = option("Options of this method alone.", metavar="KEY=VALUE")
    num: int = option("Results for each picture.", "--num", "-n", min=1, max=MAX_HELD, default=8)
    first: int | None = option("Only the first N pictures.", metavar="N", min=1, max=MAX_COUNT)
    tile: bool = option("Keep a picture's size: denoise overlapping tiles and average them at each step.")
    klass: str | None = option("A class by name or number. [default: the picture's, if known]", "--class")
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)
    scale: int | None = option(
        "Repeat each pixel N times in PNG. [default: to about 64 pixels]", metavar="N", min=1, max=32
    )
    sampling: dict[str, Any] = sampling_options(SAMPLING_OPTIONS.keys() - {"classes"})

    def __post_init__(self) -> None:
        super().__post_init__()
        values = (self.mask, self.upscale, self.colorize or None, self.deblur, self.operator, self.strength)
        given = [flag for flag, value in zip(KINDS, values, strict=True) if value is not None]
        if not given:
            raise UsageError(f"nothing to do: give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        for alone in ("--operator", "--strength"):
            if alone in given and len(given) > 1:
                other = next(flag for flag in given if flag != alone)
                raise UsageError(f"{alone} and {other} exclude each other: give one of them")
        if "--mask" in given and "--deblur" in given:
            raise UsageError("--mask and --deblur exclude each other: give one of them")
        entry = METHODS.get(self.method or "")
        if self.strength is not None and entry is not None and entry.needs_operator:
            raise UsageError(
                f"--strength is not for method {self.method}, which restores a measurement: use sdedit"
            )
        if self.strength is not None and (self.degrade or self.sigma_y):
            raise UsageError("--strength edits pictures: --degrade and --sigma-y are for measurements")
        if self.scale is not None and self.out.suffix != ".png":
            raise UsageError("--scale is for pictures: give --out FILE.png, or leave it out")
