"""Registering models, and changing the champion, in the current tracking store.

Registering the same weights under the same protocol again changes nothing. Only a model with a better score
under the same protocol card becomes champion. The decision stays on the version and in the champion log.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.ranking import outdated_best_cell
from diffusion.choice.selection import best_model_scores, settings_of
from diffusion.images.store_meta import Training
from diffusion.layout import MODEL, RUN, SCORES
from diffusion.protocol.scores_document import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError
from tracking.keys import model_name
from tracking.registry.model_versions import (
    create_version,
    fetch_version_networks,
    fetch_version_scores,
    find_version,
    is_diffctl_version,
)
from tracking.registry.promotion import NO_OVERRIDE, Decision, Override, apply_gate
from tracking.registry.registered_models import find_champion, require_version
from tracking.runs.scored_runs import data_name, log_scores
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from diffusion.sample.network_files import NetworkFiles


def register(
    model: Path = MODEL, run_file: Path = RUN, scores_file: Path = SCORES, override: Override = NO_OVERRIDE
) -> Decision:
    """Register the model with its scores, and make it champion if it is better or `override` forces it.

    In a sweep over EMA profiles it is the model of the best cell, with the cells of that model. All scores
    are logged to the training's run; a dry run changes nothing. DiffctlError if the scores are of another
    model or MLflow does not answer.
    """
    document = read_scores(scores_file)
    files, sha256, scores = _best_model(document, model, scores_file)
    name = model_name(data_name(document))
    run_id = None if override.dry_run else log_scores(run_file, document)
    with mlflow_client() as client:
        found = find_version(client, name, sha256, scores)
        if found is None and run_id is not None:
            found = create_version(client, name, run_id, files, scores)
        return apply_gate(client, name, found, scores, override)


def _best_model(
    document: ScoresDocument, model: Path, scores_file: Path
) -> "tuple[NetworkFiles, str, ScoresDocument]":
    """Return the best cell's files, its model's digest and scores; DiffctlError for another model."""
    from diffusion.model.model_file import read_verified_artefact  # torch
    from diffusion.sample.network_files import card_files, ema_model_file, matching_snapshots

    best = document.cells[document.best.cell]
    width = best.ema
    own = read_verified_artefact(model)
    file = model if width is None else ema_model_file(matching_snapshots(model), width)
    artefact = own if width is None else read_verified_artefact(file)
    known: dict[float | None, object] = {None: own.model_sha256, width: artefact.model_sha256}
    for cell in document.cells.values():
        sha256 = cell.card.get("model_sha256")
        if known.get(cell.ema, sha256) != sha256:
            raise DiffctlError(f"{scores_file} is of another model than {model}: `diffctl run` makes others")
    scores = best_model_scores(document)
    if width is not None:
        training = artefact.training and Training(**artefact.training)
        scores = scores.model_copy(update={"training": training})
    files = card_files(settings_of(best, document.best.cell, 0), best.card, file, model)
    return files, artefact.model_sha256, scores


def promote(name: str, number: int, override: Override = NO_OVERRIDE) -> Decision:
    """Make a version champion if it is better or `override` forces it; UsageError if there is none."""
    with mlflow_client() as client:
        candidate = require_version(client, name, number)
        return apply_gate(client, name, candidate, fetch_version_scores(client, candidate), override)


@dataclass(frozen=True)
class OutdatedChampion:
    """A champion scored by other code or against fewer images: version, best cell, and files."""

    version: "ModelVersion"
    cell: CellScores
    files: "NetworkFiles"


def outdated_champion(document: ScoresDocument) -> OutdatedChampion | None:
    """Return the champion if only its code or number of real images makes it incomparable; else None."""
    with mlflow_client() as client:
        champion = find_champion(client, model_name(data_name(document)))
        if champion is None or not is_diffctl_version(champion):
            return None
        cells = fetch_version_scores(client, champion).cells
        cell = outdated_best_cell(document.cells, cells)
        if cell is None:
            return None
        return OutdatedChampion(champion, cells[cell], fetch_version_networks(client, champion))


def register_rescored(champion: OutdatedChampion, document: ScoresDocument) -> Decision:
    """Register the champion's own weights with new scores; it stays champion, as that version."""
    version, sha256 = champion.version, str(champion.cell.card["model_sha256"])
    with mlflow_client() as client:
        rescored = find_version(client, version.name, sha256, document) or create_version(
            client, version.name, str(version.run_id), champion.files, document
        )
        return apply_gate(client, version.name, rescored, document)
