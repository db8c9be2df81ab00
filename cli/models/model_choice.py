"""The model or configuration that a command's options select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.actions.project.params_file import find_profile, parse_assignments
from cli.shared.options import OWN_OPTIONS, ModelSourceOptions, ProfileOptions, flag_of
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS
from tracking.recipes import Source, source_of_file, source_of_run, source_of_version
from tracking.registry.registered_models import champion_model, fetch_version_files


def selected_source(options: ModelSourceOptions) -> Source:
    """Return the named model, downloaded if needed, by default the one of this project."""
    if options.run_id is not None:
        return source_of_run(options.run_id)
    if options.champion:
        name = champion_model(force=options.force)
        return source_of_version(name, fetch_version_files(name))
    return source_of_file(options.model or MODEL)


def selected_model(options: ModelSourceOptions) -> Path:
    """Return the file of the named model, as `selected_source`."""
    return selected_source(options).model


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling options that are not None; those of a sampler or a spacing as a mapping."""
    given = {name: value for name, value in options.items() if value is not None}
    own = OWN_OPTIONS & given.keys()
    return given | {name: parse_assignments(given[name], flag_of(name)) for name in own}


def selected_config(options: ProfileOptions) -> Config:
    """Return the named configuration, by default params.yaml."""
    return load(PARAMS if options.profile is None else find_profile(options.profile))
