"""The model or configuration that a command's options select."""

from pathlib import Path

from cli.actions.params_file import find_profile
from cli.shared.options import ModelOptions, ProfileOptions
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS
from diffusion.model.model_file import read_artefact
from diffusion.process.process_registry import ProcessConfig
from tracking.registry.registered_models import fetch_champion, project_model
from tracking.runs.scored_runs import fetch_model


def selected_model(options: ModelOptions) -> Path:
    """Return the named model file, downloaded if needed, by default the one of this project."""
    if options.run_id is not None:
        return fetch_model(options.run_id)
    if options.champion:
        return fetch_champion(project_model())
    return options.model or MODEL


def selected_config(options: ProfileOptions) -> Config:
    """Return the named configuration, by default params.yaml."""
    return load(PARAMS if options.profile is None else find_profile(options.profile))


def selected_process(options: ProfileOptions) -> ProcessConfig:
    """Return the process of the named model, or else of the configuration."""
    if options.names_model:
        return read_artefact(selected_model(options)).process
    return selected_config(options).process
