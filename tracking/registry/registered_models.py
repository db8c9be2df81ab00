"""Reading the model registry: the champion, its history, and the versions that diffctl registered."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from diffusion.choice.selection import best_model_scores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NAME
from diffusion.system.params import PARAMS, read_params
from diffusion.system.section import Section, validate
from tracking.keys import MODEL_SHA256, model_name
from tracking.registry.champion_log import History, find_model, read_history, repair
from tracking.registry.model_versions import (
    fetch_version_networks,
    fetch_version_scores,
    find_version,
    get_version,
    is_diffctl_version,
)
from tracking.runs.scored_runs import data_name
from tracking.store import mlflow_client, store_exists

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from diffusion.sample.network_files import NetworkFiles


class RegisteredVersion(NamedTuple):
    """A version of a registered model, and whether it is champion."""

    version: int
    is_champion: bool


class VersionFiles(NamedTuple):
    """A version, the files of its networks in the cache, and the scores that it was registered with."""

    version: int
    files: "NetworkFiles"
    scores: ScoresDocument


class _Data(Section, extra="ignore"):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=MAX_NAME)]


class _Params(Section, extra="ignore"):
    data: _Data


def project_model() -> str:
    """Return the name of this project's registered model; of params.yaml only data.name has to be valid."""
    return model_name(validate(_Params, read_params(earlier_names=True), PARAMS).data.name)


def read_champion_history(name: str) -> History:
    """Read the champion log and repair aliases of a killed move; UsageError for an unknown model."""
    if store_exists():
        with mlflow_client() as client:
            if find_model(client, name) is not None:
                return repair(client, name)
    raise UsageError(f"there is no registered model {name}: `diffctl run` registers one")


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Return the champion's version; None if there is no champion or no such model."""
    holder = read_history(client, name).holder
    return get_version(client, name, holder) if holder else None


def champion_version(name: str) -> int | None:
    """Return the champion's version number, or None."""
    with mlflow_client() as client:
        found = find_champion(client, name)
    return int(found.version) if found else None


def require_version(client: "MlflowClient", name: str, number: int | None) -> "ModelVersion":
    """Return the version of that number (None: the champion); UsageError if it does not exist."""
    found = find_champion(client, name) if number is None else get_version(client, name, number)
    if found is None and number is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    if found is None:
        raise UsageError(f"{name} has no version {number}: `diffctl history` lists the champions")
    return found


def champion_run(name: str) -> str:
    """Return the id of the champion's run; UsageError if there is no champion."""
    with mlflow_client() as client:
        return str(require_version(client, name, None).run_id)


def fetch_scores_of(name: str, number: int | None = None) -> ScoresDocument:
    """Return the scores of a version (default: the champion); UsageError if there is no such version."""
    with mlflow_client() as client:
        return fetch_version_scores(client, require_version(client, name, number))


def fetch_version_files(name: str, number: int | None = None) -> VersionFiles:
    """Return a version, by default the champion; UsageError if there is none, DiffctlError if damaged."""
    with mlflow_client() as client:
        return _fetch_files(client, require_version(client, name, number))


def find_version_files(name: str, sha256: str) -> VersionFiles | None:
    """Return the files and the scores of the newest version of a model by its `model_sha256`, or None."""
    if not store_exists():
        return None
    with mlflow_client() as client:
        query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}'"
        found = filter(is_diffctl_version, client.search_model_versions(query))
        newest = max(found, key=lambda one: int(one.version), default=None)
        return None if newest is None else _fetch_files(client, newest)


def _fetch_files(client: "MlflowClient", registered: "ModelVersion") -> VersionFiles:
    return VersionFiles(
        int(registered.version),
        fetch_version_networks(client, registered),
        fetch_version_scores(client, registered),
    )


def list_versions(name: str) -> list[RegisteredVersion]:
    """Return the versions that diffctl registered, the newest first; none if there is no store."""
    if not store_exists():
        return []
    with mlflow_client() as client:
        return _numbered(client, name, client.search_model_versions(f"name = '{name}'"))


def find_registered(document: ScoresDocument) -> RegisteredVersion | None:
    """Return the version of the scores' best model: of these scores, else the champion, else the newest."""
    scores = best_model_scores(document)
    name, sha256 = model_name(data_name(scores)), str(scores.cells[scores.best.cell].card.get("model_sha256"))
    with mlflow_client() as client:
        exact = find_version(client, name, sha256, scores)
        query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}'"
        found = _numbered(client, name, [exact] if exact else client.search_model_versions(query))
    return max(found, key=lambda one: (one.is_champion, one.version), default=None)


def _numbered(client: "MlflowClient", name: str, found: "list[ModelVersion]") -> list[RegisteredVersion]:
    """Return the numbers of the versions that diffctl registered, the newest first."""
    numbers = sorted((int(one.version) for one in found if is_diffctl_version(one)), reverse=True)
    champion = find_champion(client, name)
    return [RegisteredVersion(one, champion is not None and one == int(champion.version)) for one in numbers]
