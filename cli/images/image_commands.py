"""Images: `diffctl sample`, `encode`, `interpolate`, `grid`, `edit` and `show`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.shared.command import argument, command, group, option, out_option
from cli.shared.options import (
    JsonOptions,
    ModelSourceOptions,
    ProfileOptions,
    StorePath,
    flag_of,
    sampling_options,
)
from diffusion.layout import GRIDS
from diffusion.protocol.edits import MAX_SIGMA_Y, METHODS, OPERATORS
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_HELD, MAX_SEED, MAX_STEPS

app = typer.Typer()
show_app = group(app, "show", "Figures of params.yaml, a profile or a model.")

MAX_FRAMES = 10_000  # of an interpolation
USUAL_NUM = 16  # images, without --num and --index
KINDS = ("--mask", "--upscale", "--colorize", "--deblur", "--operator", "--strength")
MESSAGE = "computing the figure"
NOTEBOOKS = "forward", "variance"  # the figures that are notebooks now
StepCount = Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps.")]


@command(app, "cli.images.sampled_images:sample_images", "loading the model")
class Sample(JsonOptions, ModelSourceOptions):
    """Sample images from a model.

    Image I depends on the seed and on I only. With --champion or --run-id, settings without an option are
    those of the best cell of the model's sweep.
    """

    out: Path = out_option("FILE.png (grid), .gif (denoising) or .npz.", ".png", ".gif", ".npz")
    num: int | None = option("Number of images. [default: 16]", "--num", "-n", min=1, max=MAX_HELD)
    index: int | None = option("Only image I, as in any batch.", min=0, max=MAX_COUNT)
    budget: int | None = option("NFE per image: sample the sweep's best cell for it.", min=1, max=MAX_COUNT)
    klass: str | None = option("A class by name or number. [default: all in turn]", "--class")
    low_res: Path | None = option(
        "Enlarge the pictures of this folder, of a model with model.low_res. [default: held-out images]",
        metavar="FOLDER",
    )
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)
    scale: int | None = option(
        "Repeat each pixel N times in PNG and GIF. [default: to about 64 pixels]", metavar="N", min=1, max=32
    )
    sampling: dict[str, Any] = sampling_options()

    @property
    def indices(self) -> range:
        """The indices of the images."""
        return range(self.num or USUAL_NUM) if self.index is None else range(self.index, self.index + 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:  # it decides all but the seed
            decided = {**self.sampling, "seed": None}
            if given := [flag_of(name) for name, value in decided.items() if value is not None]:
                raise UsageError(f"--budget takes {given[0]} from the model's sweep: give one of them")
        if self.num is not None and self.index is not None:
            raise UsageError("--num and --index exclude each other: leave one out")
        if self.low_res is not None and self.sampling.get("base") is not None:
            raise UsageError("--low-res and --base exclude each other: leave one out")
        if self.scale is not None and self.out.suffix == ".npz":
            raise UsageError("--scale is for pictures: give --out FILE.png or FILE.gif, or leave it out")


class CodeOptions(JsonOptions, ModelSourceOptions):
    """The options of DDIM inversion."""

    store: StorePath = None
    steps: int = option("DDIM steps in each direction.", min=1, max=MAX_STEPS, default=100)
    sampling: dict[str, Any] = sampling_options(["spacing", "spacing_options"])


@command(app, "cli.images.image_analysis:encode", "loading the model")
class Encode(CodeOptions):
    """Encode images as noise by DDIM inversion (η = 0). Also prints the error of the reconstruction.

    For a model of process edm the spacing is karras by default.
    """

    out: Path = out_option("FILE.npz (codes) or .png (images, codes, reconstructions).", ".npz", ".png")
    images: list[str] | None = argument("Files or numbers in the store. [default: first --num]", paths=True)
    num: int = option("Number of images from the store.", "--num", "-n", min=1, max=MAX_HELD, default=16)
    klass: str | None = option("A class by name or number. [default: the image's]", "--class")
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)


@command(app, "cli.images.image_analysis:interpolate", "loading the model")
class Interpolate(CodeOptions):
    """Interpolate between two images by slerp of their codes.

    For a model of process edm the spacing is karras by default.
    """

    first: str = argument("An image file, or a number in the store.", paths=True)
    second: str = argument("Another one.", paths=True)
    out: Path = out_option("FILE.png (one row) or .gif.", ".png", ".gif")
    frames: int = option("Number of images, both ends included.", min=2, max=MAX_FRAMES, default=9)
    klass: str | None = option(
        "The class of all images. [default: of the ends, or none if they differ]",
        "--class",
    )


@command(app, "cli.images.sampled_images:learn_grid", "loading the model")
class Grid(JsonOptions, ModelSourceOptions):
    """Learn the times of few steps for a model (GITS, 2405.11326), for the spacing `learned`.

    They minimise how far steps leave the bent trajectories of the model. Learning takes 60 network calls per
    trajectory, and no training.
    """

    steps: str = option("The numbers of steps.", metavar="S,…", default="4,6,8,10")
    out: Path = option("The file of the times.", "--out", "-o", metavar="FILE", default=GRIDS)
    num: int = option("Number of trajectories.", "--num", "-n", min=1, max=MAX_HELD, default=256)
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)
    sampling: dict[str, Any] = sampling_options(["guidance", "seed", "clip"])


@command(app, "cli.images.edited_images:edit", "loading the model")
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


class FigureOptions(JsonOptions):
    """The output of a figure."""

    out: Path | None = out_option("FILE.svg or .png. [default: text]", ".png", ".svg")


@command(show_app, "cli.images.figures:show_steps", MESSAGE, name="steps")
class StepsFigure(FigureOptions, ProfileOptions):
    """The times of each spacing."""

    count: StepCount = 10


@command(show_app, "cli.images.figures:show_reverse", MESSAGE, name="reverse")
class ReverseFigure(FigureOptions, ModelSourceOptions):
    """The sampling of one image: x_t and the predicted x_0 at some steps."""

    index: int = option("The image's index, as in `diffctl sample`.", min=0, max=MAX_COUNT, default=0)
    klass: str | None = option("A class by name or number. [default: as in `sample`]", "--class")
    sampling: dict[str, Any] = sampling_options(SAMPLING_OPTIONS.keys() - {"timesteps", "classes"})


@command(show_app, "cli.images.figures:show_model", MESSAGE, name="model")
class ModelFigure(FigureOptions, ProfileOptions):
    """The network: levels, output shapes, parameters and FLOPs per image."""


@command(show_app, "cli.images.figures:show_samplers", MESSAGE, name="samplers")
class SamplersFigure(FigureOptions, ProfileOptions):
    """Sampling paths to five Gaussians with an exact denoiser, by sampler."""

    count: StepCount = 10
    seed: int = option("The seed of the noise.", min=0, max=MAX_SEED, default=0)
    sampling: dict[str, Any] = sampling_options(["spacing"])


def _name_notebook(context: typer.Context) -> None:
    """Refuse a figure that was a command, and name its notebook."""
    notebook = f"docs/notebooks/{context.info_name}.ipynb"
    raise UsageError(f"`{context.command_path}` was removed: open {notebook} of diffctl's repository")


for name in NOTEBOOKS:
    ignored = {"ignore_unknown_options": True, "allow_extra_args": True}
    show_app.command(name, hidden=True, context_settings=ignored)(_name_notebook)
