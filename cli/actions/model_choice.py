"""The model or configuration that a command's options select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.actions.params_file import find_profile, parse_assignments
from cli.shared.options import OWN_OPTIONS, ModelSourceOptions, ProfileOptions, flag_of
from diffusion.choice.selection import best_settings
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.protocol.settings import SampleSettings, parse_settings, refuse_idle
from diffusion.sample.network_files import NetworkFiles, network_files
from tracking.registry.registered_models import (
    champion_model,
    champion_run,
    fetch_scores_of,
    fetch_version_files,
    find_version_files,
    project_model,
)
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_model, fetch_scores


def selected_model(options: ModelSourceOptions) -> Path:
    """Return the named model file, downloaded if needed, by default the one of this project."""
    if options.run_id is not None:
        return fetch_model(options.run_id)
    if options.champion:
        return fetch_version_files(champion_model(force=options.force)).files.model
    return options.model or MODEL


def selected_scores(options: ModelSourceOptions) -> ScoresDocument:
    """Return the scores of a model: of its run, its version, or metrics/scores.json next to its folder."""
    if options.run_id is not None:
        return fetch_scores(find_run(options.run_id))
    if options.champion:
        return fetch_scores_of(project_model())
    return read_scores((options.model or MODEL).absolute().parent.parent / SCORES)


def selected_run(options: ModelSourceOptions) -> str | None:
    """Return the MLflow run of the selected model; None for a file."""
    if options.champion:
        return champion_run(project_model())
    return None if options.run_id is None else str(find_run(options.run_id).info.run_id)


def selected_files(options: ModelSourceOptions, settings: SampleSettings, model: Path) -> NetworkFiles:
    """Return the files for these settings; `model` is the selected one.

    A registered model carries what guides it in its best cell; another guide or classifier is a file of the
    project. UsageError if a file is missing.
    """
    registered = {}
    is_alone = not settings.is_guided and settings.base is None
    if not is_alone and (options.champion or options.run_id is not None):
        registered = _registered_guides(settings, model)
    others = settings.model_copy(update=dict.fromkeys(registered))
    files = network_files(others, model)._replace(**registered)
    return files if settings.base is None else files._replace(real=None)


def _registered_guides(settings: SampleSettings, model: Path) -> dict[str, Path]:
    """Return the registered files, guide and classifier, that these settings name as the best cell does."""
    artefact = read_artefact(model)
    found = find_version_files(artefact.model_sha256)
    if found is None:
        return {}
    best = best_settings(found.scores)
    used = {
        "guide": settings.needs_guide,
        "classifier": settings.has_classifier,
        "base": settings.base is not None,
    }
    return {
        kind: path
        for kind, is_used in used.items()
        if is_used and (path := getattr(found.files, kind)) and getattr(best, kind) == getattr(settings, kind)
    }


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling options that are not None; those of a sampler or a spacing as a mapping."""
    given = {name: value for name, value in options.items() if value is not None}
    own = OWN_OPTIONS & given.keys()
    return given | {name: parse_assignments(given[name], flag_of(name)) for name in own}


def chosen_settings(options: Mapping[str, Any], usual: dict[str, Any] | None = None) -> SampleSettings:
    """Return the settings of given options and `usual` ones; UsageError if they do not fit."""
    given = given_options(options)
    settings = parse_settings(given, usual)
    refuse_idle(given, settings)
    return settings


def selected_config(options: ProfileOptions) -> Config:
    """Return the named configuration, by default params.yaml."""
    return load(PARAMS if options.profile is None else find_profile(options.profile))


def selected_process(options: ProfileOptions) -> ProcessConfig:
    """Return the process of the named model, or else of the configuration."""
    if options.names_model:
        return read_artefact(selected_model(options)).process
    return selected_config(options).process
