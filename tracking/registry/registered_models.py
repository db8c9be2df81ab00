"""The model registry: registering models, changing the champion, and reading registered versions.

Registering the same weights under the same protocol again changes nothing. Only a model with a better score
under the same protocol card becomes champion. The decision stays on the version and in the champion log.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffusion.choice.ranking import outdated_best_cell
from diffusion.choice.selection import best_card, best_model_scores
from diffusion.data.data_config import default_title
from diffusion.images.store_meta import Training
from diffusion.layout import MODEL, SCORES
from diffusion.protocol.card import network_digests
from diffusion.protocol.resolution import settings_of
from diffusion.protocol.scores_document import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from tracking.keys import MODEL_SHA256, model_name, read_project, title_of
from tracking.registry.champion_log import ChampionHistory, read_history, repair
from tracking.registry.model_versions import (
    create_version,
    fetch_version_networks,
    fetch_version_scores,
    find_version,
    get_version,
    other_images,
    unreadable_reason,
)
from tracking.registry.promotion import NO_OVERRIDE, GateDecision, Override, apply_gate
from tracking.runs.score_logging import log_scores
from tracking.runs.scored_runs import data_name
from tracking.store import Found, find, mlflow_client, readable, store_exists

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from diffusion.sample.network_files import NetworkFiles


class RegisteredVersion(NamedTuple):
    """A version of a registered model, whether it is champion, and its training's run in MLflow."""

    name: str
    version: int
    is_champion: bool
    run_id: str


class VersionFiles(NamedTuple):
    """A version, the cached files of its networks, the scores that it was registered with, and its run."""

    version: int
    files: "NetworkFiles"
    scores: ScoresDocument
    run_id: str


class OutdatedChampion(NamedTuple):
    """A champion scored by other code or against fewer images: version, best cell, and files."""

    version: "ModelVersion"
    cell: CellScores
    files: "NetworkFiles"


def project_model() -> str:
    """Return the name of this project's registered model.

    Earlier versions named it after data.name. As long as this project's champion is there, that name is
    returned, with a DiffctlWarning.
    """
    project = read_project()
    name, earlier = model_name(project.title), model_name(project.data.name)
    if project.tracking.title is None and name != earlier and store_exists():
        with mlflow_client() as client:
            champion = find_champion(client, earlier)
            if champion is not None and find(client.get_registered_model, name) is None:
                path = client.get_run(str(champion.run_id)).data.params.get("data.path")
                if default_title(project.data.name, path) == project.title:
                    keep = f"set tracking.title: {project.data.name} to keep the name"
                    text = f"the champion is in {earlier}: rename that model to {name} in MLflow, or {keep}"
                    warnings.warn(text, DiffctlWarning, stacklevel=2)
                    return earlier
    return name


def champion_model(*, force: bool) -> str:
    """Return the name of this project's registered model, to use its champion.

    UsageError if the champion was trained on other images than data/prepared, unless `force` is set.
    """
    name = project_model()
    with mlflow_client() as client:
        if not force and (why := other_images(require_version(client, name, None))):
            raise UsageError(f"{why}: set tracking.title to name this project's models, or add --force")
    return name


def _model_of(document: ScoresDocument) -> str:
    """Return the name of the registered model for these scores, of the project's or other data."""
    data = data_name(document)
    return project_model() if title_of(data) != data else model_name(data)


def register(override: Override = NO_OVERRIDE) -> GateDecision:
    """Register the model with its scores, and make it champion if it is better or `override` forces it.

    In a sweep over EMA profiles it is the model of the best cell, with the cells of that model. All scores
    are logged to the training's run; a dry run changes nothing. DiffctlError if the scores are of another
    model or MLflow does not answer.
    """
    document = read_scores(SCORES)
    files, sha256, scores = _best_model(document)
    name = _model_of(document)
    run_id = None if override.dry_run else log_scores(document)
    with mlflow_client() as client:
        found = find_version(client, name, sha256, scores)
        if found is None and run_id is not None:
            found = create_version(client, name, run_id, files, scores)
        return apply_gate(client, name, found, scores, override)


def _best_model(document: ScoresDocument) -> "tuple[NetworkFiles, str, ScoresDocument]":
    """Return the best cell's files, its model's digest and scores; DiffctlError for another model."""
    from diffusion.model.model_file import read_verified_artefact  # torch
    from diffusion.sample.ema_files import ema_model_file, matching_snapshots
    from tracking.runs.base_models import fetch_scored_files

    best = document.cells[document.best.cell]
    width = best.ema
    own = read_verified_artefact(MODEL)
    file = MODEL if width is None else ema_model_file(matching_snapshots(MODEL), width)
    artefact = own if width is None else read_verified_artefact(file)
    known: dict[float | None, object] = {None: own.model_sha256, width: artefact.model_sha256}
    for cell in document.cells.values():
        sha256 = cell.card.get("model_sha256")
        if known.get(cell.ema, sha256) != sha256:
            raise DiffctlError(f"{SCORES} is of another model than {MODEL}: `diffctl run` makes others")
    scores = best_model_scores(document)
    if width is not None:
        training = artefact.training and Training(**artefact.training)
        scores = scores.model_copy(update={"training": training})
    files = fetch_scored_files(settings_of(best, document.best.cell), best.card, file, MODEL)
    return files, artefact.model_sha256, scores


def promote(name: str, number: int, override: Override = NO_OVERRIDE) -> GateDecision:
    """Make a version champion if it is better or `override` forces it; UsageError if there is none."""
    with mlflow_client() as client:
        candidate = require_version(client, name, number)
        return apply_gate(client, name, candidate, fetch_version_scores(client, candidate), override)


def outdated_champion(document: ScoresDocument) -> OutdatedChampion | None:
    """Return the champion if only its code or number of real images makes it incomparable; else None."""
    with mlflow_client() as client:
        champion = find_champion(client, _model_of(document))
        if champion is None or unreadable_reason(champion) or other_images(champion):
            return None
        cells = fetch_version_scores(client, champion).cells
        if cell := outdated_best_cell(document.cells, cells):
            return OutdatedChampion(champion, cells[cell], fetch_version_networks(client, champion))
    return None


def register_rescored(champion: OutdatedChampion, document: ScoresDocument) -> GateDecision:
    """Register the champion's own weights with new scores; it stays champion, as that version."""
    version, sha256 = champion.version, str(champion.cell.card["model_sha256"])
    with mlflow_client() as client:
        rescored = find_version(client, version.name, sha256, document) or create_version(
            client, version.name, str(version.run_id), champion.files, document
        )
        return apply_gate(client, version.name, rescored, document)


def read_champion_history(name: str) -> ChampionHistory:
    """Read the champion log and repair aliases of a killed move; UsageError for an unknown model."""
    if store_exists():
        with mlflow_client() as client:
            if find(client.get_registered_model, name) is not None:
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
    if found := find_champion(client, name) if number is None else get_version(client, name, number):
        return found
    if number is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    raise UsageError(f"{name} has no version {number}: `diffctl history` lists the champions")


def fetch_scores_of(name: str, number: int | None = None) -> ScoresDocument:
    """Return the scores of a version (default: the champion); UsageError if there is no such version."""
    with mlflow_client() as client:
        return fetch_version_scores(client, require_version(client, name, number))


def fetch_version_files(name: str, number: int | None = None) -> VersionFiles:
    """Return a version, by default the champion; UsageError if there is none, DiffctlError if damaged."""
    with mlflow_client() as client:
        return _fetch_files(client, require_version(client, name, number))


def find_version_files(card: Mapping[str, object]) -> VersionFiles | None:
    """Return the files and the scores of the newest intact version with the networks of a card, or None.

    DiffctlError if there is none, and one that may have them is lost or damaged.
    """

    def fetch(client: "MlflowClient", registered: "ModelVersion") -> VersionFiles | None:
        own = best_card(fetch_version_scores(client, registered))
        return _fetch_files(client, registered) if network_digests(own) == network_digests(card) else None

    return _newest_intact(str(card.get("model_sha256")), fetch)


def find_version_model(sha256: str) -> Path | None:
    """Return the model file of a registered version by its `model_sha256`, or None.

    DiffctlError if there are versions, and all are lost or damaged.
    """
    return _newest_intact(sha256, lambda *version: fetch_version_networks(*version).model)


def _newest_intact(sha256: str, fetch: Callable[..., Found | None]) -> Found | None:
    """Return what `fetch` returns for the newest intact version with these weights; None if that is nothing.

    DiffctlError if a version is lost or damaged, and no other one is found.
    """
    if not store_exists():
        return None
    problems: list[str] = []
    with mlflow_client() as client:
        for registered in _search_versions(client, sha256=sha256):
            found, problem = readable(fetch, client, registered)
            if found is not None:
                return found
            if problem:
                problems.append(problem)
    if problems:
        raise DiffctlError(problems[0])
    return None


def _fetch_files(client: "MlflowClient", registered: "ModelVersion") -> VersionFiles:
    """Return the files and the scores of a version; DiffctlError if they are not of the same networks."""
    files, scores = fetch_version_networks(client, registered), fetch_version_scores(client, registered)
    if wrong := files.read().find_difference(best_card(scores)):
        which = f"{registered.name} version {registered.version}"
        raise DiffctlError(f"the {wrong} of {which} is not the one of its scores: do not use it")
    return VersionFiles(int(registered.version), files, scores, str(registered.run_id))


def list_versions(name: str, sha256: str = "") -> list[RegisteredVersion]:
    """Return the versions that diffctl registered, all or those of some weights, the newest first."""
    if not store_exists():
        return []
    with mlflow_client() as client:
        found = _search_versions(client, name, sha256)
        holder = read_history(client, name).holder
    return [
        RegisteredVersion(name, int(one.version), int(one.version) == holder, str(one.run_id))
        for one in found
    ]


def find_registered(document: ScoresDocument) -> RegisteredVersion | None:
    """Return the version with the weights of the scores' best model: the champion, else the newest."""
    scores = best_model_scores(document)
    sha256 = str(best_card(scores).get("model_sha256"))
    found = list_versions(_model_of(scores), sha256)
    return max(found, key=lambda one: one.is_champion, default=None)


def _search_versions(client: "MlflowClient", name: str = "", sha256: str = "") -> "list[ModelVersion]":
    """Return the versions that diffctl registered, of a model or of some weights, the newest first."""
    terms = [f"name = '{name}'"] * bool(name) + [f"tags.`{MODEL_SHA256}` = '{sha256}'"] * bool(sha256)
    versions = client.search_model_versions(" AND ".join(terms))
    found = [one for one in versions if not unreadable_reason(one)]
    return sorted(found, key=lambda one: int(one.creation_timestamp), reverse=True)
