"""Reading the model registry: the champion, and the versions that diffctl registered."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffusion.choice.document_slices import best_model_scores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.system.errors import TemporaryError, UsageError
from tracking.keys import MODEL_SHA256, model_name
from tracking.registry.champion_log import read_history
from tracking.registry.model_versions import (
    fetch_version_scores,
    fetch_version_weights,
    find_version,
    get_version,
    is_diffctl_version,
)
from tracking.runs.scored_runs import data_name
from tracking.store import mlflow_client, store_exists

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


class RegisteredVersion(NamedTuple):
    """A version of a registered model, and whether it is champion."""

    version: int
    is_champion: bool


class VersionFiles(NamedTuple):
    """A version, its model's file in the cache, and the scores that it was registered with."""

    version: int
    file: Path
    scores: ScoresDocument


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Return the champion's version; None if there is no champion or no such model."""
    holder = read_history(client, name).holder
    return get_version(client, name, holder) if holder else None


def champion_version(name: str) -> int | None:
    """Return the champion's version number, or None."""
    with mlflow_client() as client:
        found = find_champion(client, name)
    return int(found.version) if found else None


def champion_run(name: str) -> str:
    """Return the id of the champion's run; UsageError if there is no champion."""
    return str(_require_champion(name).run_id)


def fetch_champion(name: str) -> Path:
    """Return the champion's model file in the cache.

    UsageError if there is no champion; DiffctlError if its file's SHA-256 is not the one in its tag.
    """
    champion = _require_champion(name)
    with mlflow_client() as client:
        return fetch_version_weights(client, champion)


def fetch_champion_scores(name: str) -> ScoresDocument:
    """Return the scores that the champion was registered with; UsageError if there is no champion."""
    champion = _require_champion(name)
    with mlflow_client() as client:
        return fetch_version_scores(client, champion)


def fetch_champion_files(name: str) -> VersionFiles:
    """Return the champion's version, file and scores.

    UsageError if there is no champion, DiffctlError if its file was changed, TemporaryError if another
    version became champion meanwhile.
    """
    before = _require_champion(name)
    files = _fetch_files(before)
    if champion_version(name) != files.version:
        raise TemporaryError(f"the champion of {name} changed during the download: try again")
    return files


def _require_champion(name: str) -> "ModelVersion":
    with mlflow_client() as client:
        champion = find_champion(client, name)
    if champion is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    return champion


def require_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion":
    """Return the version of that number; UsageError if it does not exist."""
    found = get_version(client, name, number)
    if found is None:
        raise UsageError(f"{name} has no version {number}: `diffctl history` lists the champions")
    return found


def fetch_version(name: str, number: int) -> Path:
    """Return a version's model file in the cache; UsageError if there is no such version."""
    return fetch_version_files(name, number).file


def fetch_version_files(name: str, number: int) -> VersionFiles:
    """Return the file and the scores of a version.

    UsageError if there is no such version, DiffctlError if its file was changed.
    """
    with mlflow_client() as client:
        registered = require_version(client, name, number)
    return _fetch_files(registered)


def _fetch_files(registered: "ModelVersion") -> VersionFiles:
    with mlflow_client() as client:
        weights = fetch_version_weights(client, registered)
        return VersionFiles(int(registered.version), weights, fetch_version_scores(client, registered))


def list_versions(name: str) -> list[RegisteredVersion]:
    """Return the versions that diffctl registered, the newest first; none if there is no store."""
    if not store_exists():
        return []
    with mlflow_client() as client:
        found = client.search_model_versions(f"name = '{name}'")
    champion = champion_version(name)
    numbers = sorted((int(one.version) for one in found if is_diffctl_version(one)), reverse=True)
    return [RegisteredVersion(number, number == champion) for number in numbers]


def find_registered(document: ScoresDocument) -> RegisteredVersion | None:
    """Return the version of the best model of these scores; None if it is not registered.

    Prefer the version with these very scores, then the champion, then the newest one with its weights.
    """
    scores = best_model_scores(document)
    name, sha256 = model_name(data_name(scores)), str(scores.cells[scores.best.cell].card.get("model_sha256"))
    with mlflow_client() as client:
        exact = find_version(client, name, sha256, scores)
        query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}'"
        found = [exact] if exact else client.search_model_versions(query)
    champion = champion_version(name)
    known = [RegisteredVersion(int(one.version), int(one.version) == champion) for one in found]
    return max(known, key=lambda one: (one.is_champion, one.version), default=None)
