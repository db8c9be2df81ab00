"""Which model a server has: one that stays, or whatever is champion."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from diffusion.choice.best_settings import scores_for
from diffusion.choice.model_cells import model_scores
from diffusion.layout import SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.scores import ScoresDocument, read_scores
from diffusion.system.errors import UsageError


class PublishedModel(NamedTuple):
    """A model's file under a name, its version where it is registered, its sweep's scores if it has any."""

    name: str
    version: int | None
    file: Path
    scores: ScoresDocument | None


class ModelSource(Protocol):
    """Where a server's model comes from."""

    def fetch(self) -> PublishedModel:
        """The model as it is now; DiffctlError when there is none."""

    def has_changed(self, since: PublishedModel) -> bool:
        """Whether `fetch` would give another one than this; DiffctlError when nobody can tell."""


class FixedSource:
    """A model that stays what it is."""

    def __init__(self, published: PublishedModel) -> None:
        self._published = published

    def fetch(self) -> PublishedModel:
        """The model."""
        return self._published

    def has_changed(self, since: PublishedModel) -> bool:
        """Never."""
        return False


class ChampionSource:
    """Whatever version of the registered model `name` is champion."""

    def __init__(self, name: str) -> None:
        self._name = name

    def fetch(self) -> PublishedModel:
        """The champion; UsageError when there is none."""
        from tracking.registry.registered_models import fetch_champion_files

        champion = fetch_champion_files(self._name)
        return PublishedModel(self._name, champion.version, champion.file, champion.scores)

    def has_changed(self, since: PublishedModel) -> bool:
        """Whether another version holds the title; not when none does, for the last one still serves."""
        from tracking.registry.registered_models import champion_version

        return champion_version(self._name) not in (None, since.version)


def model_of_file(path: Path, say: Callable[[str], object]) -> PublishedModel:
    """A model file with its project's scores; without them where they are not its own, as `say` is told."""
    file = path.absolute()
    scores = None
    if (beside := file.parent.parent / SCORES).exists():
        try:
            scores = scores_for(read_scores(beside), path, read_artefact(path).model_sha256)
        except UsageError as error:
            scores = None
            say(f"{path} is served without scores: {error}")
    return PublishedModel(path.name, None, path, scores)


def model_of_run(name: str) -> PublishedModel:
    """The model of the MLflow run that `name` means, with its scores where it was evaluated."""
    from tracking.runs.run_lookup import find_run
    from tracking.runs.scored_runs import fetch_model, fetch_scores

    file, run = fetch_model(name), find_run(name)
    try:
        scores = model_scores(fetch_scores(run), read_artefact(file).model_sha256)
    except UsageError:  # it was not evaluated
        scores = None
    return PublishedModel(str(run.info.run_name), None, file, scores)
