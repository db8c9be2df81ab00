"""The source of a server's model: a fixed one, or the current champion."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from diffusion.choice.selection import best_card, best_settings, model_scores, scores_for, settings_of
from diffusion.layout import SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.errors import UsageError
from tracking.connectivity import MlflowError
from tracking.registry.registered_models import champion_version, fetch_version_files, find_version_files
from tracking.runs.base_models import fetch_scored_base, fetch_scored_files
from tracking.runs.run_lookup import find_run
from tracking.runs.scored_runs import fetch_model, fetch_scores


class PublishedModel(NamedTuple):
    """A model with what guides it in its best cell: name, version if registered, scores if it has any."""

    name: str
    version: int | None
    files: NetworkFiles
    scores: ScoresDocument | None


class FixedSource(NamedTuple):
    """A model that never changes."""

    published: PublishedModel

    def fetch(self) -> PublishedModel:
        """Return the model."""
        return self.published

    def has_changed(self, since: PublishedModel) -> bool:
        """Return whether a server has yet to load it."""
        return since is not self.published


class ChampionSource(NamedTuple):
    """The champion of the registered model `name`."""

    name: str

    def fetch(self) -> PublishedModel:
        """Return the champion; raise UsageError if there is none."""
        found = fetch_version_files(self.name)
        return PublishedModel(self.name, found.version, found.files, found.scores)

    def has_changed(self, since: PublishedModel) -> bool:
        """Return whether another version is champion; without any, the last one still serves."""
        return champion_version(self.name) not in (None, since.version)


ModelSource = FixedSource | ChampionSource


def model_of_file(path: Path, report: Callable[[str], object]) -> PublishedModel:
    """Return a model file with its project's scores; if they are of another model, `report` that."""
    scores_file = path.absolute().parent.parent / SCORES
    if scores_file.exists():
        try:
            scores = scores_for(read_scores(scores_file), path, read_artefact(path).model_sha256)
            name, cell = scores.best.cell, scores.cells[scores.best.cell]
            files = fetch_scored_files(settings_of(cell, name, 0), cell.card, path)
            return PublishedModel(path.name, None, files, scores)
        except (MlflowError, UsageError) as error:
            report(f"{path} is served without scores: {error}")
    return PublishedModel(path.name, None, NetworkFiles(path), None)


def model_of_run(name: str) -> PublishedModel:
    """Return the model of an MLflow run, given by id or name, with its scores if it was evaluated.

    UsageError if the base of a cascade is not the one of the scores.
    """
    file, run = fetch_model(name), find_run(name)
    artefact, title = read_artefact(file), str(run.info.run_name)
    try:
        scores = model_scores(fetch_scores(run), artefact.model_sha256)
    except UsageError:  # not evaluated
        scores = None
    files = NetworkFiles(file)
    if scores is not None:
        card, base = best_card(scores), best_settings(scores).base
        if (registered := find_version_files(card)) is not None:
            files = registered.files._replace(model=file)
        elif base is not None:
            files = files._replace(base=fetch_scored_base(base, card))
    return PublishedModel(title, None, files, scores)
