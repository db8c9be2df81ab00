"""`diffctl show`: figures of a configuration or a model, each a subcommand."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import add_command, command, group, option, out_option
from cli.shared.options import JsonOptions, ModelOptions, ProfileOptions, Spacing, StorePath, sampling_options
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_SEED, MAX_STEPS

MESSAGE = "computing the figure"
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")]
SpacingOption = Annotated[Spacing, typer.Option("--spacing", help="The times of the steps.")]
StepCount = Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps.")]


class FigureOptions(JsonOptions):
    """The output of a figure."""

    out: Path | None = out_option("FILE.svg or .png. [default: text]", ".png", ".svg")


@command("cli.actions.figures:show_forward", MESSAGE)
class Forward(FigureOptions, ProfileOptions):
    """Noise schedules by t: ᾱ, signal-to-noise ratio, and noised images."""

    image: str | None = option("A file or a number in the store. [default: 0 if prepared]")
    store: StorePath = None
    seed: Seed = 0


@command("cli.actions.figures:show_steps", MESSAGE)
class Steps(FigureOptions, ProfileOptions):
    """The times of each spacing."""

    count: StepCount = 10


@command("cli.actions.figures:show_variance", MESSAGE)
class Variance(FigureOptions, ProfileOptions):
    """The learned variance between its bounds, by t. With --profile only the bounds."""

    count: int | None = option("Steps. [default: all T]", "--steps", min=1, max=MAX_STEPS)
    spacing: SpacingOption = Spacing["uniform"]
    store: StorePath = None
    num: int = option("Number of images.", "--num", "-n", min=1, max=MAX_BATCH, default=64)
    seed: Seed = 0


@command("cli.actions.figures:show_reverse", MESSAGE, sampling_options("timesteps"))
class Reverse(FigureOptions, ModelOptions):
    """The sampling of one image: x_t and the predicted x_0 at some steps."""

    index: int = option("The image's index, as in `diffctl sample`.", min=0, max=MAX_COUNT, default=0)
    klass: str | None = option("A class by name or number. [default: as in `sample`]", "--class")


@command("cli.actions.figures:show_model", MESSAGE)
class Model(FigureOptions, ProfileOptions):
    """The network: levels, output shapes, parameters and FLOPs per image."""


@command("cli.actions.figures:show_samplers", MESSAGE)
class Samplers(FigureOptions, ProfileOptions):
    """Sampling paths to five Gaussians with an exact denoiser, by sampler."""

    count: StepCount = 10
    spacing: SpacingOption = Spacing["uniform"]
    seed: Seed = 0


app = group("show", "Figures of params.yaml, a profile or a model.")
for figure in (Forward, Steps, Variance, Reverse, Model, Samplers):
    add_command(app, figure)
