"""The source of a server's model: a fixed one, or the current champion."""

from collections.abc import Callable
from typing import NamedTuple

from diffusion.protocol.resolution import best_settings, check_sampled_by_this_code
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.errors import UsageError
from tracking.connectivity import MlflowError
from tracking.recipes import Source, recipe_of
from tracking.registry.registered_models import champion_version, fetch_version_files


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
        return published_version(self.name)

    def has_changed(self, since: PublishedModel) -> bool:
        """Return whether another version is champion; without any, the last one still serves."""
        return champion_version(self.name) not in (None, since.version)


ModelSource = FixedSource | ChampionSource


def published_version(name: str, number: int | None = None) -> PublishedModel:
    """Return a version of a registered model, by default the champion; UsageError if there is none."""
    found = fetch_version_files(name, number)
    return PublishedModel(name, found.version, found.files, found.scores)


def published_model(source: Source, report: Callable[[str], object]) -> PublishedModel:
    """Return the model of a file or a run with what guides it in its best cell.

    Without scores it is published alone; if they do not fit it, or a network is missing, `report` that.
    """
    if source.has_scores:
        try:
            check_sampled_by_this_code(source.required_scores)
            files = recipe_of(source, best_settings(source.required_scores)).files
            return PublishedModel(source.name, None, files, source.scores)
        except (MlflowError, UsageError) as error:
            report(f"{source.model} is served without scores: {error}")
    return PublishedModel(source.name, None, NetworkFiles(source.model), None)
