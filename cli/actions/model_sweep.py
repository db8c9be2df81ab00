"""A grid of sampling settings of a trained model, sampled and scored."""

from functools import partial
from typing import Any

import typer

from cli.actions.model_choice import selected_model
from cli.actions.score_tables import show_sweep_scores
from cli.commands.scores import Sweep
from cli.shared.options import ModelOptions
from cli.stages.scoring import scored_grid
from diffusion.config import load
from diffusion.layout import SWEEP_RUN
from diffusion.protocol.sample_sections import SweepConfig, check_axes
from diffusion.protocol.scores_document import ScoresDocument, document_values
from diffusion.protocol.settings import MODEL_AXES, OPTIONS
from diffusion.system.errors import UsageError
from diffusion.system.section import validate
from tracking.keys import model_name
from tracking.registry.registered_models import champion_run
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import log_sweep


def sweep_model(options: Sweep) -> None:
    """Carry out `diffctl sweep`."""
    config = load()
    given = {name: text for name, text in options.sampling.items() if text is not None}
    axes = _axes(config.sweep, given)
    changes: dict[str, Any] = {} if options.num_images is None else {"num_images": options.num_images}
    changes |= {name: None for name in given if _is_nullable(name)}  # the axis replaces the section's value
    section = config.sample.model_copy(update=changes)
    try:
        check_axes(section, axes, given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    path = selected_model(options)
    document = scored_grid(section, axes, config.evaluate, path, SWEEP_RUN)
    logged = _log(document, config.data.name, options)
    options.answer(document_values(document), partial(_show, document, logged))


def _show(document: ScoresDocument, logged: str | None) -> None:
    show_sweep_scores(document)
    typer.echo(f"\nimages and scores: {SWEEP_RUN}")
    if logged:
        typer.echo(f"logged to run {logged}")


def _axes(usual: SweepConfig, given: dict[str, str]) -> SweepConfig:
    """Return the grid of the given axes, the others as in params.yaml; UsageError for invalid values."""
    listed = {
        axis: [
            None if part == "none" and _is_nullable(axis) else part
            for part in map(str.strip, text.split(","))
        ]
        for axis, text in given.items()
    }
    return validate(SweepConfig, {**usual.model_dump(), **listed}, "this grid does not fit")


def _is_nullable(axis: str) -> bool:
    """Return whether `none` is a value of an axis, and a sampler's option has no value by default."""
    return axis not in MODEL_AXES and OPTIONS[axis].default is None


def _log(document: ScoresDocument, data: str, selection: ModelOptions) -> str | None:
    """Log the scores to the run of the model and return its id; None for a model file."""
    run_id = selection.run_id
    if selection.champion:
        run_id = champion_run(model_name(data))
    elif run_id is not None:
        run_id = str(find_run(run_id).info.run_id)
    if run_id is not None:
        log_sweep(run_id, document)
    return run_id
