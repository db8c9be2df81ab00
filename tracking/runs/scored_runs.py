"""Scores, pictures and models that training runs have in MLflow."""

import re
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.confidence import card_diff, share_noise
from diffusion.images.pictures import read_picture
from diffusion.images.store import Images
from diffusion.layout import SCORES
from diffusion.protocol.card import NETWORKS, network_digests
from diffusion.protocol.grid import DERIVED_FIELDS, OPTION_FIELDS
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.section import fingerprint
from tracking import keys, mlflow_pages
from tracking.experiments import search_runs
from tracking.registry.model_versions import (
    cached_model,
    download_weights,
    fetch_version_networks,
    read_fetched_scores,
    unreadable_reason,
)
from tracking.runs.run_lookup import find_run, training_runs
from tracking.store import mlflow_client, readable, store_exists

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SCORES_PATH = f"{keys.EVALUATION_FOLDER}/{SCORES.name}"
SAMPLES = "samples"  # the series of a cell's picture
MAX_SEEDS = 50  # runs of a setting that are read, the newest


def child_runs(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Return the child runs of the cells that are logged, by name."""
    query = f"tags.`{keys.PARENT}` = '{parent.info.run_id}'"
    runs = search_runs(client, [parent.info.experiment_id], query)
    logged = {(run.data.tags.get(keys.CELL), run.data.tags.get(keys.CARD)): run for run in runs}
    cards = {name: card_fingerprint(cell) for name, cell in document.cells.items()}
    return {name: logged[name, card] for name, card in cards.items() if (name, card) in logged}


def card_fingerprint(cell: CellScores) -> str:
    """Return the fingerprint of a cell's card, with those of further feature spaces."""
    spaces = {name: scores.card for name, scores in cell.spaces.items()}
    return fingerprint({**cell.card, "spaces": spaces} if spaces else cell.card)


def fetch_samples(run: "Run", document: ScoresDocument) -> dict[str, Images]:
    """Return the picture (H, W, 3) of each cell that has one; DiffctlError if MLflow does not answer."""
    found: dict[str, Images] = {}
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        for name, child in child_runs(client, run, document).items():
            paths = [file.path for file in client.list_artifacts(child.info.run_id, "images")]
            logged = [path for path in paths if re.match(rf"images/{SAMPLES}\Wstep\W.*\.png", path)]
            if logged:
                file = client.download_artifacts(child.info.run_id, logged[0], scratch)
                found[name] = read_picture(Path(file), None, channels=3)
    return found


def data_name(document: ScoresDocument) -> str:
    """Return the data set of the scores."""
    return str(next(iter(document.cells.values())).card["data"])


def fetch_scores(run: "Run") -> ScoresDocument:
    """Return the scores of a training's run; UsageError if it was not evaluated."""
    run_id, name = run.info.run_id, f"run {run.info.run_name} ({run.info.run_id})"
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        if SCORES_PATH not in [file.path for file in client.list_artifacts(run_id, keys.EVALUATION_FOLDER)]:
            raise UsageError(f"{name} has no scores: it was not evaluated")
        return read_fetched_scores(Path(client.download_artifacts(run_id, SCORES_PATH, scratch)), name)


def extends_evaluation(run: "Run", document: ScoresDocument) -> bool:
    """Return whether the run has an evaluation of the same networks and protocol, from the same noise.

    Only settings on the axes of a sweep may differ, which are in the names of its curves.
    """
    try:
        own = fetch_scores(run)
    except UsageError:  # it was not evaluated
        return False
    known, swept = _networks(own), _networks(document)
    if any(known[key] != swept[key] for key in known.keys() & swept.keys()):
        return False  # such as an EMA profile swept as the model, or a classifier that was trained again
    ours, other = (next(iter(one.cells.values())) for one in (own, document))
    varied = {*ours.axes, *other.axes}
    options = OPTION_FIELDS if varied & REGISTRIES_WITH_OPTIONS.keys() else ()
    return share_noise(ours, other) and not card_diff(ours, other, (*varied, *DERIVED_FIELDS, *options))


def _networks(document: ScoresDocument) -> dict[object, object]:
    """Return the digests of all networks by curve, and of each network by its name in the cards."""
    found: dict[object, object] = {}
    for cell in document.cells.values():
        digests = found[mlflow_pages.series_name(cell)] = network_digests(cell.card)
        names = (cell.ema, *map(cell.card.get, NETWORKS[1:]))
        named = zip(NETWORKS, names, digests, strict=True)
        found |= {(kind, name): digest for kind, name, digest in named if digest}
    return found


def other_seeds(document: ScoresDocument) -> list[ScoresDocument]:
    """Return the scores of the setting's other seeds, the newest first; UsageError if it is unknown.

    DiffctlWarning for a run with scores that cannot be read, which is left out.
    """
    training = document.training
    if training is None:
        raise UsageError("these scores do not name the training of their model, so other seeds are unknown")
    if not store_exists():
        return []
    found: list[ScoresDocument] = []
    with mlflow_client() as client:
        for run in training_runs(client, MAX_SEEDS, f"tags.`{keys.SETTING}` = '{training.setting}'"):
            scores, why = readable(fetch_scores, run)
            if scores is None:
                warnings.warn(f"scores are left out: {why}", DiffctlWarning, stacklevel=2)
            else:
                found.append(scores)
    return [one for one in found if one.training is not None and one.training.seed != training.seed]


def fetch_model(name: str) -> Path:
    """Return the model file of a run (see `find_run`) in the cache.

    If its newest version is an EMA profile, return that. UsageError without a model, DiffctlError if changed.
    """
    run = find_run(name)
    run_id, sha256 = run.info.run_id, run.data.tags.get(keys.FILE_SHA256)
    with mlflow_client() as client:
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        ours = (version for version in versions if not unreadable_reason(version))
        newest = max(ours, key=lambda version: int(version.version), default=None)
        if newest and keys.EMA_SIGMA_REL in newest.tags:
            return fetch_version_networks(client, newest).model
        if sha256 is None:
            raise UsageError(f"run {run.info.run_name} ({run_id}) has no model in MLflow: try `diffctl sync`")
        return cached_model(sha256, partial(download_weights, client, run_id, keys.MODEL_FOLDER))
