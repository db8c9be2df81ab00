"""Commands over one model: from a file, an MLflow run or the registry; no model flags are ever needed."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import (
    Champion,
    ModelFile,
    Noise,
    RunId,
    Sampler,
    Spacing,
    check_output_suffix,
    file_option,
    flags_given,
    refuse_idle,
)
from cli.shared.startup_message import begin
from diffusion.protocol.samplers import SAMPLERS
from diffusion.system.limits import (
    MAX_BATCH,
    MAX_COUNT,
    MAX_ETA,
    MAX_GUIDANCE,
    MAX_HELD,
    MAX_SEED,
    MAX_STEPS,
)

USUAL_NUM = 16  # images, where neither --num nor --index is given


DECIDES = (
    "steps",
    "timesteps",
    "eta",
    "sampler",
    "noise",
    "spacing",
    "guidance",
    "guidance_interval",
    "classifier",
)


Klass = Annotated[
    str | None, typer.Option("--class", help="A class, by name or number. [default: all in turn]")
]


def sample(
    context: typer.Context,
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png (a grid), .gif (the denoising) or .npz."),
    ],
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="Images 0 … N−1. [default: 16]")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", min=0, max=MAX_COUNT, help="Image I alone, as in any batch.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, max=MAX_STEPS, help="Sampling steps, 1 … the model's T. [default: 50]"
        ),
    ] = None,
    eta: Annotated[
        float, typer.Option("--eta", min=0.0, max=MAX_ETA, help="0: deterministic DDIM; 1: DDPM.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=MAX_SEED, help="Another seed gives other images.")
    ] = 0,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            max=MAX_COUNT,
            help="Network evaluations per image: the sweep's best cell for them.",
        ),
    ] = None,
    klass: Klass = None,
    guidance: Annotated[
        float,
        typer.Option(
            "--guidance", min=0.0, max=MAX_GUIDANCE, help="The weight w of classifier-free guidance."
        ),
    ] = 0.0,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            "--guidance-interval", help="LOW:HIGH: guide where LOW < σ/α ≤ HIGH alone. [default: everywhere]"
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option("--classifier", help="Guide by a classifier that `diffctl stage classifier` trained."),
    ] = None,
    classifier_scale: Annotated[
        float, typer.Option("--classifier-scale", min=0.0, max=MAX_GUIDANCE, help="How strongly (ADM's s).")
    ] = 1.0,
    noise: Annotated[Noise, typer.Option("--noise", help="The variance that η scales.")] = Noise["small"],
    spacing: Annotated[Spacing, typer.Option("--spacing", help="Which timesteps are visited.")] = Spacing[
        "uniform"
    ],
    timesteps: Annotated[
        str | None, typer.Option("--timesteps", help="T0,T1,… instead of --steps and --spacing.")
    ] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="How a step is made.")] = Sampler["ddim"],
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images at a time.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Sample images from a model, which describes itself. Image I depends on the seed and on I alone."""
    check_output_suffix(out, (".png", ".gif", ".npz"))
    if budget is not None:
        refuse_beside_budget(context)
    _refuse_idle(context, eta, sampler, timesteps, classifier)
    refuse_idle(context, "guidance_interval", guidance == 0, "without --guidance")
    indices = _indices(num, index)
    begin("loading the model", as_json)
    from cli.actions import sample_images

    sample_images.sample_images(
        out,
        steps,
        eta,
        seed,
        budget,
        klass,
        guidance,
        guidance_interval,
        classifier,
        classifier_scale,
        noise,
        spacing,
        timesteps,
        sampler,
        batch_size,
        model,
        run_id,
        champion,
        as_json,
        indices,
    )


def _refuse_idle(
    context: typer.Context, eta: float, sampler: Sampler, timesteps: str | None, classifier: Path | None
) -> None:
    """UsageError when an option was given that means nothing beside the others."""
    deterministic = not SAMPLERS[sampler.value].stochastic
    refuse_idle(context, "noise", deterministic, f"with --sampler {sampler.value}, which adds no noise")
    refuse_idle(context, "noise", eta == 0, "at --eta 0, where no noise is added")
    refuse_idle(context, "spacing", timesteps is not None, "beside --timesteps")
    refuse_idle(context, "classifier_scale", classifier is None, "without --classifier")


def _indices(num: int | None, index: int | None) -> range:
    from diffusion.system.errors import UsageError

    if num is not None and index is not None:
        raise UsageError("--num and --index exclude each other: give one of them")
    return range(num or USUAL_NUM) if index is None else range(index, index + 1)


def refuse_beside_budget(context: typer.Context) -> None:
    """UsageError when the command line sets by itself what the budget decides."""
    from diffusion.system.errors import UsageError

    if flags := flags_given(context, DECIDES):
        raise UsageError(f"--budget takes {flags[0]} from the model's sweep: give one of the two")
