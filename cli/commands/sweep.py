"""`diffctl sweep`: other settings of a finished model, sampled and scored; nothing is trained."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.run import show_scores
from cli.commands.sample import Champion, ModelFile, RunId, resolve_model
from cli.shared.first_word import begin
from cli.stages.scoring import scored_grid
from diffusion.layout import SWEEP_RUN
from diffusion.system.limits import MAX_COUNT

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument
    from diffusion.protocol.sweep_config import SweepConfig


def sweep(
    steps: Annotated[str | None, typer.Option("--steps", help="A,B,… [default: params.yaml's]")] = None,
    eta: Annotated[str | None, typer.Option("--eta", help="A,B,… [default: params.yaml's]")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="A,B,… [default: params.yaml's]")] = None,
    noise: Annotated[str | None, typer.Option("--noise", help="A,B,… [default: params.yaml's]")] = None,
    spacing: Annotated[str | None, typer.Option("--spacing", help="A,B,… [default: params.yaml's]")] = None,
    guidance: Annotated[str | None, typer.Option("--guidance", help="A,B,… [default: params.yaml's]")] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option("--guidance-interval", help="LOW:HIGH or none,… of σ/α. [default: params.yaml's]"),
    ] = None,
    ema: Annotated[
        str | None, typer.Option("--ema", help="Widths A,B,… of averages. [default: params.yaml's]")
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option("--num-images", min=2, max=MAX_COUNT, help="Images per cell. [default: params.yaml's]"),
    ] = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores document as JSON.")] = False,
) -> None:
    """Sample and score a grid of settings from a finished model, against data/reference.

    With --run-id or --champion the scores go to that model's run in MLflow, beside those that it has.
    """
    begin("loading the model", as_json)
    from diffusion.config import load
    from diffusion.protocol.scores import document_values

    config = load()
    given = {"steps": steps, "eta": eta, "sampler": sampler}
    given |= {"noise": noise, "spacing": spacing, "guidance": guidance, "ema": ema}
    given |= {"guidance_interval": guidance_interval}
    axes = _axes(config.sweep, given)
    _refuse_idle_interval(guidance_interval, axes.guidance or (config.sample.guidance,))
    told: dict[str, Any] = {} if num_images is None else {"num_images": num_images}
    if guidance_interval is not None:  # the axis takes the section's place
        told["guidance_interval"] = None
    section = config.sample.model_copy(update=told)
    path = resolve_model(model, run_id, champion)
    document = scored_grid(section, axes, config.evaluate, path, SWEEP_RUN)
    logged = _log(document, config.data.name, run_id, champion)
    if as_json:
        typer.echo(json.dumps(document_values(document), indent=2, sort_keys=True))
        return
    show_scores(document)
    typer.echo(f"\nimages and scores: {SWEEP_RUN}")
    if logged:
        typer.echo(f"logged to run {logged}")


def _axes(usual: "SweepConfig", given: dict[str, str | None]) -> "SweepConfig":
    """The grid that is asked for, the other axes as in params.yaml; UsageError for values that are none."""
    from diffusion.protocol.sweep_config import SweepConfig
    from diffusion.system.section import validate

    listed: dict[str, Any] = {
        axis: [None if axis == "guidance_interval" and part == "none" else part for part in _parts(values)]
        for axis, values in given.items()
        if values is not None
    }
    return validate(SweepConfig, {**usual.model_dump(), **listed}, "this grid does not fit")


def _refuse_idle_interval(given: str | None, guidance: Sequence[float]) -> None:
    """UsageError for an interval of a guidance that there is in no cell."""
    from diffusion.system.errors import UsageError

    if given is not None and not any(guidance):
        raise UsageError("--guidance-interval does nothing without --guidance: leave it out")


def _parts(values: str) -> list[str]:
    return [part.strip() for part in values.split(",")]


def _log(document: "ScoresDocument", data: str, run_id: str | None, champion: bool) -> str | None:
    """Put the scores beside those of the model's run; the run's id, None for a model that is a file."""
    from tracking.keys import model_name
    from tracking.registry.model_registry import champion_run
    from tracking.runs.run_lookup import find_run
    from tracking.runs.scored_runs import log_sweep

    if champion:
        run_id = champion_run(model_name(data))
    elif run_id is not None:
        run_id = str(find_run(run_id).info.run_id)
    if run_id is not None:
        log_sweep(run_id, document)
    return run_id
