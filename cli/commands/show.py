"""`diffctl show`: figures of a configuration or a model, each a subcommand."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.shared.command import command, group, option, out_option
from cli.shared.options import JsonOptions, ModelSourceOptions, ProfileOptions, sampling_options
from diffusion.protocol.option_tables import SAMPLING_OPTIONS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COUNT, MAX_SEED, MAX_STEPS

app = typer.Typer()
show_app = group(app, "show", "Figures of params.yaml, a profile or a model.")

MESSAGE = "computing the figure"
NOTEBOOKS = "forward", "variance"  # the figures that are notebooks now
StepCount = Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps.")]


class FigureOptions(JsonOptions):
    """The output of a figure."""

    out: Path | None = out_option("FILE.svg or .png. [default: text]", ".png", ".svg")


@command(show_app, "cli.actions.images.figures:show_steps", MESSAGE, name="steps")
class StepsFigure(FigureOptions, ProfileOptions):
    """The times of each spacing."""

    count: StepCount = 10


@command(show_app, "cli.actions.images.figures:show_reverse", MESSAGE, name="reverse")
class ReverseFigure(FigureOptions, ModelSourceOptions):
    """The sampling of one image: x_t and the predicted x_0 at some steps."""

    index: int = option("The image's index, as in `diffctl sample`.", min=0, max=MAX_COUNT, default=0)
    klass: str | None = option("A class by name or number. [default: as in `sample`]", "--class")
    sampling: dict[str, Any] = sampling_options(SAMPLING_OPTIONS.keys() - {"timesteps", "classes"})


@command(show_app, "cli.actions.images.figures:show_model", MESSAGE, name="model")
class ModelFigure(FigureOptions, ProfileOptions):
    """The network: levels, output shapes, parameters and FLOPs per image."""


@command(show_app, "cli.actions.images.figures:show_samplers", MESSAGE, name="samplers")
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
