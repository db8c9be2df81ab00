"""Commands over one model: from a file, an MLflow run or the registry; no model flags are ever needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.budget import refuse_beside_budget, scores_of
from cli.commands.writers import WRITERS, frames_of
from cli.shared.first_word import begin
from cli.shared.flags import refuse_idle
from cli.shared.names import Noise, Sampler, Spacing
from cli.shared.outputs import file_option, writer_of
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

if TYPE_CHECKING:
    from diffusion.model.classifier import LoadedClassifier
    from diffusion.model.model_file import LoadedModel
    from diffusion.protocol.scores import ScoresDocument
    from diffusion.protocol.settings import SampleSettings

USUAL_NUM = 16  # images, where neither --num nor --index is given

ModelFile = Annotated[
    Path | None, typer.Option("--model", help="A model file. [default: models/unet.safetensors]")
]
RunId = Annotated[str | None, typer.Option("--run-id", help="The model of this MLflow run.")]
Champion = Annotated[
    bool, typer.Option("--champion", help="The registered champion for this params.yaml's data.")
]

Klass = Annotated[
    str | None, typer.Option("--class", help="A class, by name or number. [default: all in turn]")
]


def refuse_two_models(model: Path | None, run_id: str | None, champion: bool) -> None:
    """UsageError when more than one model is named."""
    from diffusion.system.errors import UsageError

    if sum((model is not None, run_id is not None, champion)) > 1:
        raise UsageError("--model, --run-id and --champion exclude each other: give one of them")


def resolve_model(model: Path | None, run_id: str | None, champion: bool) -> Path:
    """The model file that is meant; UsageError when more than one is named."""
    from diffusion.layout import MODEL

    refuse_two_models(model, run_id, champion)
    if run_id is not None:
        from tracking.runs.scored_runs import fetch_model

        return fetch_model(run_id)
    if champion:
        from diffusion.config import load
        from tracking.keys import model_name
        from tracking.registry.model_registry import fetch_champion

        return fetch_champion(model_name(load().data.name))
    return model or MODEL


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
    writer = writer_of(out, WRITERS)
    if budget is not None:
        refuse_beside_budget(context)
    _refuse_idle(context, eta, sampler, timesteps, classifier)
    refuse_idle(context, "guidance_interval", guidance == 0, "without --guidance")
    indices = _indices(num, index)
    begin("loading the model", as_json)
    from diffusion.protocol.grid import describe_cell, settings_axes
    from diffusion.protocol.settings import parse_settings

    settings = parse_settings(
        {"steps": steps, "timesteps": timesteps, "guidance_interval": guidance_interval},
        sampler=sampler.value,
        eta=eta,
        seed=seed,
        guidance=guidance,
        classifier_scale=classifier_scale if classifier else 0.0,
        noise=noise.value,
        spacing=spacing.value,
    )
    path = resolve_model(model, run_id, champion)
    if budget is not None:
        settings = _settings_for(budget, seed, path, scores_of(path, run_id, champion))
    loaded, guide = _load(path, classifier, settings)
    frames, labels = frames_of(loaded, guide, settings, indices, klass, batch_size, out.suffix == ".gif")
    writer(out, frames, labels)
    made = {"out": str(out), "indices": list(indices), **settings.model_dump(mode="json")}
    said = f"{len(indices)} image(s) of {loaded.artefact.data.name}: {out}"
    if budget is not None:
        cell = describe_cell(settings_axes(settings))
        said = f"{cell}, the best of its sweep for {budget} network evaluations\n{said}"
    typer.echo(json.dumps(made) if as_json else said)


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


def _settings_for(budget: int, seed: int, model: Path, scores: "ScoresDocument") -> "SampleSettings":
    from diffusion.choice.best_settings import budget_settings
    from diffusion.model.model_file import read_artefact

    return budget_settings(scores, budget, seed, model, read_artefact(model).model_sha256)


def _load(
    path: Path, classifier: Path | None, settings: "SampleSettings"
) -> "tuple[LoadedModel, LoadedClassifier | None]":
    """The model, and the classifier if there is to be one; UsageError when the settings do not fit."""
    from diffusion.model.classifier import load_classifier
    from diffusion.model.model_file import load_model
    from diffusion.sample.generate import check_settings
    from diffusion.system.devices import default_device

    loaded = load_model(path, default_device())
    check_settings(loaded.artefact, settings)
    return loaded, load_classifier(classifier, default_device()) if classifier else None
