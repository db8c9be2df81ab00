"""Images from one model, with the settings of the options or of a budget."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from cli.actions.image_files import WRITERS, frames_of
from cli.actions.model_choice import selected_model
from cli.shared.options import Selection
from diffusion.choice.selection import budget_settings, usual_settings
from diffusion.layout import SCORES
from diffusion.model.classifier import LoadedClassifier, load_classifier
from diffusion.model.model_file import LoadedModel, load_model, read_artefact
from diffusion.protocol.grid import describe_cell, settings_axes
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.protocol.settings import SampleSettings, parse_settings
from diffusion.sample.generate import check_settings
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from tracking.registry.registered_models import fetch_scores_of, project_model
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_scores


def sample_images(
    out: Path,
    options: dict[str, Any],
    budget: int | None,
    klass: str | None,
    classifier: Path | None,
    classifier_scale: float,
    batch_size: int,
    selection: Selection,
    as_json: bool,
    indices: range,
) -> None:
    """Carry out `diffctl sample`."""
    path = selected_model(selection)
    usual = {} if budget is not None else _usual_settings(path, selection, options)
    guidance = classifier_scale if classifier else 0.0
    settings = parse_settings(options, usual, classifier_scale=guidance)
    if budget is not None:
        settings = _settings_for(budget, settings.seed, path, scores_of(path, selection))
    loaded, guide = _load(path, classifier, settings)
    frames, labels = frames_of(loaded, guide, settings, indices, klass, batch_size, out.suffix == ".gif")
    WRITERS[out.suffix](out, frames, labels)
    made = {"out": str(out), "indices": list(indices), **settings.model_dump(mode="json")}
    text = f"{len(indices)} image(s) of {loaded.artefact.data.name}: {out}"
    cell = describe_cell(settings_axes(settings))
    if budget is not None:
        text = f"{cell}, the best of its sweep for {budget} NFE\n{text}"
    elif usual:
        text = f"{cell}: settings without an option are those of the best cell\n{text}"
    typer.echo(json.dumps(made) if as_json else text)


def _usual_settings(model: Path, selection: Selection, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the best cell of a registered model or a run, the defaults of `serve` too."""
    if not selection.champion and selection.run_id is None:
        return {}
    with suppress(UsageError):  # it was not evaluated
        chosen = {name: value for name, value in options.items() if value is not None}
        return usual_settings(scores_of(model, selection), chosen)
    return {}


def _settings_for(budget: int, seed: int, model: Path, scores: ScoresDocument) -> SampleSettings:
    return budget_settings(scores, budget, seed, model, read_artefact(model).model_sha256)


def _load(
    path: Path, classifier: Path | None, settings: SampleSettings
) -> tuple[LoadedModel, LoadedClassifier | None]:
    """Load the model and the classifier, if any; UsageError if the settings do not fit."""
    loaded = load_model(path, default_device())
    check_settings(loaded.artefact, settings)
    return loaded, load_classifier(classifier, default_device()) if classifier else None


def scores_of(model: Path, selection: Selection) -> ScoresDocument:
    """Return the scores document of a model: of its MLflow run, its registered version, or its project.

    A model file in models/ has its scores in ../metrics/scores.json.
    """
    if selection.run_id is not None:
        return fetch_scores(find_run(selection.run_id))
    if selection.champion:
        return fetch_scores_of(project_model())
    return read_scores(model.absolute().parent.parent / SCORES)
