"""The registry: models without pickle, and the gate that decides which one is champion.

Registering is idempotent for the same weights under the same protocol. Champion becomes only a model with a
better score under the same protocol card; what was decided, and why, stays on the version and in the history.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffusion.choice.gate import outdated_best_cell
from diffusion.choice.model_cells import best_model_scores
from diffusion.images.store_meta import Training
from diffusion.layout import MODEL, RUN, SCORES
from diffusion.protocol.scores import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError, UsageError
from tracking.keys import model_name
from tracking.registry import promotion
from tracking.registry.champion_log import History, read_history
from tracking.registry.model_versions import (
    create_version,
    fetch_version_scores,
    fetch_version_weights,
    find_version,
    get_version,
    is_diffctl_version,
)
from tracking.registry.moves import model_exists, repair
from tracking.registry.promotion import NO_OVERRIDE, Decision, Override, Rollback, apply_gate, preview_gate
from tracking.runs.scored_runs import data_name, log_scores
from tracking.store import connect, database_file, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


def register(
    model: Path = MODEL, run_file: Path = RUN, scores_file: Path = SCORES, override: Override = NO_OVERRIDE
) -> Decision:
    """Register the model with its scores, and make it champion if it is better, or by a person's `override`.

    Of a sweep over averages that is the one that the best cell is of, with the cells that are of it. All
    scores are logged to the model's run too; a dry run changes nothing anywhere. DiffctlError when they are
    not this model's, or MLflow does not answer.
    """
    document, uri = read_scores(scores_file), tracking_uri()
    best = _best_model(document, model, scores_file)
    sha256, scores = best.sha256, best.scores
    name = model_name(data_name(document))
    run_id = None if override.dry_run else log_scores(run_file, document)
    with translate_errors(uri):
        client = connect(uri)
        found = find_version(client, name, sha256, scores)
        if run_id is None:
            return preview_gate(client, name, int(found.version) if found else None, scores, override)
        candidate = found or create_version(client, name, run_id, best.file, scores)
        return apply_gate(client, candidate, scores, override)


class _Best(NamedTuple):
    """The model that the best cell is of: its file, what cards know it by, and the scores of it alone."""

    file: Path
    sha256: str
    scores: ScoresDocument


def _best_model(document: ScoresDocument, model: Path, scores_file: Path) -> _Best:
    """DiffctlError where the scores are not of the model of this file, or not of its averages."""
    from diffusion.model.model_file import (
        read_verified_artefact,  # with torch, which most others here do without
    )
    from diffusion.sample.ema_models import ema_model_file, matching_snapshots

    width = document.cells[document.best.cell].ema
    own = read_verified_artefact(model)
    file = model if width is None else ema_model_file(matching_snapshots(model), width)
    artefact = own if width is None else read_verified_artefact(file)
    known = {None: own.model_sha256, width: artefact.model_sha256}
    if any(known.get(cell.ema, sha256) != sha256 for cell, sha256 in _models(document)):
        raise DiffctlError(f"{scores_file} is of another model than {model}: `diffctl run` makes new scores")
    scores = best_model_scores(document)
    if width is not None:
        scores = scores.model_copy(update={"training": artefact.training and Training(**artefact.training)})
    return _Best(file, artefact.model_sha256, scores)


def _models(document: ScoresDocument) -> list[tuple[CellScores, object]]:
    """Each cell with the model_sha256 of its card."""
    return [(cell, cell.card.get("model_sha256")) for cell in document.cells.values()]


def promote(name: str, number: int, override: Override = NO_OVERRIDE) -> Decision:
    """Make a version that is registered champion if it is better, or by a person's `override`."""
    uri = tracking_uri()
    with translate_errors(uri):
        return promotion.promote_version(connect(uri), name, number, override)


def version_scores(name: str, number: int) -> ScoresDocument:
    """The scores that a version was registered with; UsageError when there is no such version."""
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        return fetch_version_scores(client, promotion.require_version(client, name, number))


@dataclass(frozen=True)
class OutdatedChampion:
    """A champion scored by other code or against fewer images: its version, best cell, and weights' file."""

    version: "ModelVersion"
    cell: CellScores
    weights: Path


def outdated_champion(document: ScoresDocument) -> OutdatedChampion | None:
    """The champion, where only code or more real images keep these scores from being compared with its own.

    None where there is no champion, and where they can be compared or never could.
    """
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        champion = find_champion(client, model_name(data_name(document)))
        if champion is None or not is_diffctl_version(champion):
            return None
        cells = fetch_version_scores(client, champion).cells
        cell = outdated_best_cell(document.cells, cells)
        return (
            OutdatedChampion(champion, cells[cell], fetch_version_weights(client, champion)) if cell else None
        )


def register_rescored(champion: OutdatedChampion, document: ScoresDocument) -> Decision:
    """Register the champion's own weights with scores of today; it stays champion, as that version."""
    uri, version = tracking_uri(), champion.version
    sha256 = str(champion.cell.card["model_sha256"])
    with translate_errors(uri):
        client = connect(uri)
        found = find_version(client, version.name, sha256, document)
        anew = found or create_version(client, version.name, str(version.run_id), champion.weights, document)
        return apply_gate(client, anew, document)


def plan_rollback(name: str, to: int | None = None) -> tuple[Rollback, Path, ScoresDocument]:
    """Where a rollback goes to, as `promotion.plan_rollback`, with that version's checked file and scores."""
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        plan = promotion.plan_rollback(client, name, to)
        return plan, fetch_version_weights(client, plan.target), fetch_version_scores(client, plan.target)


def roll_back(plan: Rollback, note: str = "") -> History:
    """Carry the rollback out; Contended where the champion moved since it was planned."""
    uri = tracking_uri()
    with translate_errors(uri):
        return promotion.roll_back(connect(uri), plan, note)


def read_champion_history(name: str) -> History:
    """Who was champion, aliases that a killed move left behind put right; UsageError for an unknown name."""
    uri = tracking_uri()
    database = database_file(uri)
    unknown = UsageError(f"there is no registered model {name}: `diffctl run` registers one")
    if database is not None and not database.exists():  # it takes seconds to make, for nothing
        raise unknown
    with translate_errors(uri):
        client = connect(uri)
        if not model_exists(client, name):
            raise unknown
        return repair(client, name)


def fetch_champion(name: str) -> Path:
    """The champion's model file, from a cache addressed by content.

    UsageError when there is none; DiffctlError when its file's SHA-256 is not the one in its version's tag.
    """
    client, champion = _champion(name)
    return fetch_version_weights(client, champion)


def fetch_version(name: str, number: int) -> Path:
    """A registered version's model file, champion or not, as `fetch_champion`.

    UsageError when there is no such version.
    """
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        version = promotion.require_version(client, name, number)
    return fetch_version_weights(client, version)


def champion_run(name: str) -> str:
    """The id of the run that the champion came from; UsageError when there is none."""
    return str(_champion(name)[1].run_id)


def fetch_champion_scores(name: str) -> ScoresDocument:
    """The scores that the champion was registered with; UsageError when there is none."""
    client, champion = _champion(name)
    return fetch_version_scores(client, champion)


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that is champion; None when there is none, or no such model."""
    holder = read_history(client, name).holder if model_exists(client, name) else None
    return get_version(client, name, holder) if holder else None


def _champion(name: str) -> "tuple[MlflowClient, ModelVersion]":
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        champion = find_champion(client, name)
    if champion is None:
        raise UsageError(f"{name} has no champion: `diffctl run` registers a model")
    return client, champion
