"""`diffctl show`: figures of how a configuration or a model works, each a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.configuration import Asked, Champion, ModelFile, Profile, RunId
from cli.shared.flags import refuse_idle
from cli.shared.images import StorePath
from cli.shared.names import Noise, Sampler, Spacing
from cli.shared.progress import progress
from cli.shared.shown import AsJson, Out, begin_figure, tell
from diffusion.protocol.samplers import SAMPLERS
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_ETA, MAX_GUIDANCE, MAX_SEED, MAX_STEPS

if TYPE_CHECKING:
    from diffusion.images.store import Images
    from diffusion.model.model_config import NetworkSpec

app = typer.Typer(
    help="Show how diffusion works, for params.yaml, a profile or a model: as SVG, PNG or text.",
    no_args_is_help=True,
)

Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")]
SpacingOption = Annotated[Spacing, typer.Option("--spacing", help="Which timesteps are visited.")]


@app.command()
def forward(
    context: typer.Context,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", help="A file, or a number in the store. [default: 0, where data is prepared]"
        ),
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
    """Both schedules by t: ᾱ, the signal-to-noise ratio, and what they do to an image."""
    begin_figure(out, as_json)
    from diffusion.show.forward import forward as computed

    refuse_idle(context, "store", image is not None and not image.isdecimal(), "where the image is a file")
    shown = computed(Asked(profile, model, run_id, champion).process(), _image(image, store), seed)
    if not shown.noised:
        typer.echo(
            "no data is prepared here, so no image is shown: `diffctl stage data`, or --image", err=True
        )
    tell(shown, out, as_json)


@app.command()
def steps(
    count: Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="How many: S.")] = 10,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The S timesteps that each spacing visits, by t and by noise."""
    begin_figure(out, as_json)
    from diffusion.show.step_spacing import steps as computed

    tell(computed(Asked(profile, model, run_id, champion).process(), count), out, as_json)


@app.command()
def variance(
    context: typer.Context,
    count: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps. [default: all timesteps]"),
    ] = None,
    spacing: SpacingOption = Spacing["uniform"],
    store: StorePath = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=MAX_BATCH, help="Images to noise.")] = 64,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """Where a trained model's variance lies between its bounds, by t; with --profile the bounds alone."""
    begin_figure(out, as_json)
    from diffusion.analysis.image_inputs import input_condition, known_labels, open_matching_store
    from diffusion.model.model_file import load_model
    from diffusion.show.variance import learned_variance, make_grid, variance_bounds
    from diffusion.system.devices import default_device

    asked = Asked(profile, model, run_id, champion)
    if not asked.names_model and profile is not None:
        for name in ("store", "num", "seed"):
            refuse_idle(context, name, True, "with --profile, which names no model")
        return tell(variance_bounds(make_grid(asked.process(), count, spacing.value)), out, as_json)
    loaded = load_model(asked.model_file(), default_device())
    grid = make_grid(loaded.artefact.process, count, spacing.value)
    images = open_matching_store(store, loaded.artefact)
    indices = range(min(num, len(images)))
    condition = input_condition(loaded.artefact, known_labels(images, loaded.artefact, indices), None)
    with progress("variance", unit="passes") as show:
        shown = learned_variance(loaded, grid, images.images[: len(indices)], condition, seed, show)
    tell(shown, out, as_json)


@app.command()
def reverse(
    context: typer.Context,
    index: Annotated[
        int, typer.Option("--index", min=0, max=MAX_COUNT, help="The image, as in `diffctl sample`.")
    ] = 0,
    count: Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS, help="Sampling steps.")] = 50,
    eta: Annotated[
        float, typer.Option("--eta", min=0.0, max=MAX_ETA, help="0: deterministic DDIM; 1: DDPM.")
    ] = 0.0,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="How a step is made.")] = Sampler["ddim"],
    noise: Annotated[Noise, typer.Option("--noise", help="The variance that η scales.")] = Noise["small"],
    spacing: SpacingOption = Spacing["uniform"],
    guidance: Annotated[float, typer.Option("--guidance", min=0.0, max=MAX_GUIDANCE)] = 0.0,
    guidance_interval: Annotated[
        str | None, typer.Option("--guidance-interval", help="LOW:HIGH of σ/α, as of `diffctl sample`.")
    ] = None,
    klass: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number. [default: as `diffctl sample`]")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """One image's way back from noise: x_t at some steps, and the image that the model predicts from it."""
    begin_figure(out, as_json)
    from diffusion.model.model_file import load_model
    from diffusion.protocol.settings import parse_settings
    from diffusion.sample.class_labels import class_condition, mixed_condition
    from diffusion.show.reverse import reverse as computed
    from diffusion.system.devices import default_device

    idle = eta == 0 or not SAMPLERS[sampler.value].stochastic
    refuse_idle(context, "noise", idle, "where no noise is added")
    refuse_idle(context, "guidance_interval", guidance == 0, "without --guidance")
    settings = parse_settings(
        {"guidance_interval": guidance_interval},
        steps=count,
        eta=eta,
        sampler=sampler.value,
        noise=noise.value,
        spacing=spacing.value,
        guidance=guidance,
        seed=seed,
    )
    loaded = load_model(Asked(None, model, run_id, champion).model_file(), default_device())
    condition = (
        mixed_condition(loaded.artefact, settings, [index])
        if klass is None
        else class_condition(loaded.artefact, klass, 1)
    )
    tell(computed(loaded, settings, index, condition, default_device()), out, as_json)


@app.command("model")
def network(
    out: Out = None,
    as_json: AsJson = False,
    profile: Profile = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
) -> None:
    """The network as a table: its levels, their outputs, parameters and FLOPs per image."""
    begin_figure(out, as_json)
    from diffusion.show.network_table import model as computed

    tell(computed(_spec(Asked(profile, model, run_id, champion))), out, as_json)


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
    """Where each sampler goes: paths from the same noise to five Gaussians, by an exact denoiser."""
    begin_figure(out, as_json)
    from diffusion.show.sampler_paths import samplers as computed

    process = Asked(profile, model, run_id, champion).process()
    tell(computed(process, count, spacing.value, seed=seed), out, as_json)


def _image(name: str | None, store: Path | None) -> "Images | None":
    """The image (H, W, C) that a file or a number names; None where none is named and none is prepared."""
    from diffusion.images.pictures import read_picture
    from diffusion.images.store import open_store
    from diffusion.layout import PREPARED
    from diffusion.system.errors import UsageError

    if name is not None and not name.isdecimal():
        picture = read_picture(Path(name), None, 3)
        is_grey = bool((picture == picture[:, :, :1]).all())
        return picture[:, :, :1] if is_grey else picture
    if name is None and store is None and not (PREPARED / "test").is_dir():
        return None
    opened = open_store(store or PREPARED / "test")
    number = int((name or "0")[:18])
    if number >= len(opened):
        raise UsageError(f"there is no image {number} in {opened.path}: give 0 to {len(opened) - 1}")
    image: Images = opened.images[number]
    return image


def _spec(asked: Asked) -> "NetworkSpec":
    """The shape of a model's network, or of the one that a configuration would train."""
    from diffusion.check.findings import Project
    from diffusion.model.model_file import read_artefact
    from diffusion.system.devices import default_device
    from diffusion.train.plan import plan_training

    if asked.names_model:
        return read_artefact(asked.model_file()).network
    project = Project(asked.config())
    return plan_training(project.config, project.train_meta(), default_device()).network
