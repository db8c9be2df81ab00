"""A grid of sampling settings of a finished model, sampled and scored."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from cli.actions.model_choice import resolve_model
from cli.actions.score_tables import show_sweep_scores
from cli.stages.scoring import scored_grid
from diffusion.config import load
from diffusion.layout import SWEEP_RUN
from diffusion.protocol.sample_sections import SweepConfig
from diffusion.protocol.scores_document import ScoresDocument, document_values
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from tracking.keys import model_name
from tracking.registry.registered_models import champion_run
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import log_sweep


def sweep_model(
    steps: str | None,
    eta: str | None,
    sampler: str | None,
    noise: str | None,
    spacing: str | None,
    guidance: str | None,
    guidance_interval: str | None,
    ema: str | None,
    num_images: int | None,
    model: Path | None,
    run_id: str | None,
    champion: bool,
    as_json: bool,
) -> None:
    """Carry out `diffctl sweep`."""
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
    show_sweep_scores(document)
    typer.echo(f"\nimages and scores: {SWEEP_RUN}")
    if logged:
        typer.echo(f"logged to run {logged}")


def _axes(usual: SweepConfig, given: dict[str, str | None]) -> SweepConfig:
    """The grid that is asked for, the other axes as in params.yaml; UsageError for values that are none."""
    listed: dict[str, Any] = {
        axis: [None if axis == "guidance_interval" and part == "none" else part for part in _parts(values)]
        for axis, values in given.items()
        if values is not None
    }
    return validate(SweepConfig, {**usual.model_dump(), **listed}, "this grid does not fit")


def _refuse_idle_interval(given: str | None, guidance: Sequence[float]) -> None:
    """UsageError for an interval of a guidance that there is in no cell."""
    if given is not None and not any(guidance):
        raise UsageError("--guidance-interval does nothing without --guidance: leave it out")


def _parts(values: str) -> list[str]:
    return [part.strip() for part in values.split(",")]


def _log(document: ScoresDocument, data: str, run_id: str | None, champion: bool) -> str | None:
    """Put the scores beside those of the model's run; the run's id, None for a model that is a file."""
    if champion:
        run_id = champion_run(model_name(data))
    elif run_id is not None:
        run_id = str(find_run(run_id).info.run_id)
    if run_id is not None:
        log_sweep(run_id, document)
    return run_id
