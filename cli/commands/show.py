"""`diffctl show`: figures of a configuration or a model, each a subcommand."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import (
    AsJson,
    Champion,
    ModelFile,
    Profile,
    RunId,
    Selection,
    Spacing,
    StorePath,
    check_output_suffix,
    file_option,
)
from cli.shared.sampling_options import ReverseCommand, given_options
from cli.shared.startup_message import begin
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_SEED, MAX_STEPS

app = typer.Typer(
    name="show",
    help="Show figures of params.yaml, a profile or a model.",
    no_args_is_help=True,
)


Out = Annotated[
    Path | None, file_option("--out", "-o", help="FILE.svg or .png. [default: text in the terminal]")
]


Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")]


SpacingOption = Annotated[Spacing, typer.Option("--spacing", help="The spacing of the timesteps.")]


def begin_figure(out: Path | None, as_json: bool) -> None:
    """Announce the figure; UsageError if its file cannot be written."""
    if out is not None:
        check_output_suffix(out, (".png", ".svg"))
    begin("computing the figure", as_json)


@app.command()
def forward(
    context: typer.Context,
    image: Annotated[
        str | None,
        typer.Option("--image", help="A file, or a number in the store. [default: 0, if data is prepared]"),
    ] = None,
    store: StorePath = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """Noise schedules by t: ᾱ, signal-to-noise ratio, and noised images."""
    begin_figure(out, as_json)
    from cli.actions import figures

    figures.show_forward(
        context, image, store, seed, out, as_json, Selection(model, run_id, champion, profile)
    )


@app.command()
def steps(
    count: Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Number of steps.")] = 10,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The timesteps of each spacing."""
    begin_figure(out, as_json)
    from cli.actions import figures

    figures.show_steps(count, out, as_json, Selection(model, run_id, champion, profile))


@app.command()
def variance(
    context: typer.Context,
    count: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps. [default: all T]"),
    ] = None,
    spacing: SpacingOption = Spacing["uniform"],
    store: StorePath = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=MAX_BATCH, help="Number of images.")] = 64,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The learned variance between its bounds, by t.

    With --profile only the bounds.
    """
    begin_figure(out, as_json)
    from cli.actions import figures

    figures.show_variance(
        context, count, spacing, store, num, seed, out, as_json, Selection(model, run_id, champion, profile)
    )


@app.command(cls=ReverseCommand)
def reverse(
    context: typer.Context,
    index: Annotated[
        int, typer.Option("--index", min=0, max=MAX_COUNT, help="The image's index, as in `diffctl sample`.")
    ] = 0,
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: as `diffctl sample`]")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The sampling of one image: x_t and the predicted x_0 at some steps."""
    begin_figure(out, as_json)
    from cli.actions import figures

    options = given_options(context)
    figures.show_reverse(options, index, klass, out, as_json, Selection(model, run_id, champion))


@app.command("model")
def network(
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The network: levels, output shapes, parameters and FLOPs per image."""
    begin_figure(out, as_json)
    from cli.actions import figures

    figures.show_model(out, as_json, Selection(model, run_id, champion, profile))


@app.command()
def samplers(
    count: Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps.")] = 10,
    spacing: SpacingOption = Spacing["uniform"],
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """Sampling paths to five Gaussians with an exact denoiser, by sampler."""
    begin_figure(out, as_json)
    from cli.actions import figures

    figures.show_samplers(count, spacing, seed, out, as_json, Selection(model, run_id, champion, profile))
