"""The model or configuration that a command's options select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cli.actions.project.params_file import find_profile, parse_assignments
from cli.shared.options import OWN_OPTIONS, ModelSourceOptions, ProfileOptions, flag_of
from diffusion.choice.selection import best_card, best_settings, model_scores
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.option_tables import refuse_idle
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.protocol.settings import SampleSettings, parse_settings
from diffusion.sample.network_files import NetworkFiles, network_files, not_of_the_scores
from diffusion.system.errors import TemporaryError, UsageError
from tracking.registry.registered_models import (
    champion_model,
    fetch_scores_of,
    fetch_version_files,
    find_version_files,
    project_model,
)
from tracking.runs.base_models import fetch_base, fetch_scored_base
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_model, fetch_scores


class SelectedModel(NamedTuple):
    """A model file, and its run in MLflow; None for a file that is not from there."""

    path: Path
    run_id: str | None


def selected_model_and_run(options: ModelSourceOptions) -> SelectedModel:
    """Return the named model, downloaded if needed, by default the one of this project."""
    if options.run_id is not None:
        run_id = str(find_run(options.run_id).info.run_id)
        return SelectedModel(fetch_model(run_id), run_id)
    if options.champion:
        found = fetch_version_files(champion_model(force=options.force))
        return SelectedModel(found.files.model, found.run_id)
    return SelectedModel(options.model or MODEL, None)


def selected_model(options: ModelSourceOptions) -> Path:
    """Return the file of the named model, as `selected_model_and_run`."""
    return selected_model_and_run(options).path


def selected_scores(options: ModelSourceOptions) -> ScoresDocument:
    """Return the scores of a model: of its run, its version, or metrics/scores.json next to its folder."""
    if options.run_id is not None:
        return fetch_scores(find_run(options.run_id))
    if options.champion:
        return fetch_scores_of(project_model())
    return read_scores((options.model or MODEL).absolute().parent.parent / SCORES)


class _BestCell(NamedTuple):
    """The best cell of a model: its settings, its card, and the files of its registered version, if any."""

    settings: SampleSettings | None = None
    card: Mapping[str, object] = {}
    files: NetworkFiles | None = None


def selected_files(
    options: ModelSourceOptions, settings: SampleSettings, model: Path, given: Mapping[str, Any]
) -> NetworkFiles:
    """Return the files for these settings, which fit; `model` is the selected one.

    What the best cell of the model names too is the file of its scores, which a registered model carries. A
    base among the `given` options is fetched. Others are files of the project. UsageError if one is missing,
    does not fit, or is not the one of the scores.
    """
    takes_base = settings.base is not None and given.get("base") is None
    best = _best_cell(options, model) if takes_base or settings.is_guided else _BestCell()
    used = {"guide": settings.needs_guide, "classifier": settings.has_classifier, "base": takes_base}
    same = [
        kind
        for kind, is_used in used.items()
        if is_used and best.settings is not None and getattr(best.settings, kind) == getattr(settings, kind)
    ]
    known = {kind: path for kind in same if (path := getattr(best.files, kind, None))}
    if settings.base is not None and "base" not in known:
        of_scores = "base" in same
        known["base"] = (
            fetch_scored_base(settings.base, best.card) if of_scores else fetch_base(settings.base)
        )
    files = network_files(settings.model_copy(update=dict.fromkeys(known)), model)._replace(**known)
    networks = files._replace(real=None).read()
    networks.check(settings)
    if wrong := networks.find_difference(best.card, [kind for kind in same if given.get(kind) is None]):
        raise not_of_the_scores(wrong, getattr(files, wrong))
    return files if settings.base is None else files._replace(real=None)


def registered_files(options: ModelSourceOptions, model: Path) -> dict[str, Path]:
    """Return the guide, classifier and base of the selected model's version by their names in the settings.

    These are the networks of its best cell; none for a model that is not registered. `model` is the selected
    one.
    """
    if not options.champion and options.run_id is None:
        return {}
    best = _best_cell(options, model)
    files = {} if best.files is None else best.files.networks()
    return {str(getattr(best.settings, kind)): file for kind, file in files.items() if kind != "model"}


def _best_cell(options: ModelSourceOptions, model: Path) -> _BestCell:
    """Return the best cell of the selected model's scores, an empty one if it was not evaluated."""
    digest = read_artefact(model).model_sha256
    if options.champion:
        found = fetch_version_files(project_model())
        own = model_scores(found.scores, digest)
        if own is None:
            raise TemporaryError("another version became champion meanwhile: run the same command again")
        return _BestCell(best_settings(own), best_card(own), found.files)
    try:
        own = model_scores(selected_scores(options), digest)
    except UsageError:
        own = None
    if own is None:
        return _BestCell()
    registered = None if options.run_id is None else find_version_files(best_card(own))
    return _BestCell(best_settings(own), best_card(own), registered and registered.files)


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
