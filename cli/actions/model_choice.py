"""The model or configuration that a command's options select."""

from pathlib import Path

from cli.actions.params_file import find_profile
from cli.shared.options import Selection
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS
from diffusion.model.model_file import read_artefact
from diffusion.process.process_registry import ProcessConfig
from tracking.registry.registered_models import fetch_champion, project_model
from tracking.runs.scored_runs import fetch_model


def selected_model(selection: Selection) -> Path:
    """Return the named model file, downloaded if needed, by default the one of this project."""
    selection.check()
    if selection.run_id is not None:
        return fetch_model(selection.run_id)
    if selection.champion:
        return fetch_champion(project_model())
    return selection.model or MODEL


def selected_config(selection: Selection) -> Config:
    """Return the named configuration, by default params.yaml."""
    selection.check()
    return load(PARAMS if selection.profile is None else find_profile(selection.profile))


def selected_process(selection: Selection) -> ProcessConfig:
    """Return the process of the named model, or else of the configuration."""
    if selection.names_model:
        return read_artefact(selected_model(selection)).process
    return selected_config(selection).process
