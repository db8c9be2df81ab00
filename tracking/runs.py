"""Scores, reports and models of trainings in MLflow. These talk to MLflow directly and fail loudly."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.chosen import told
from diffusion.choice.ranking import is_aside
from diffusion.layout import SCORES
from diffusion.protocol.scores import CellScores, ScoresDocument, as_values, read_scores
from diffusion.system.errors import UsageError
from diffusion.system.section import fingerprint
from tracking.fetch import WEIGHTS, cached_model
from tracking.lookup import find_run, read_identity, training_run
from tracking.names import (
    BEST,
    CARD,
    CELL,
    EVALUATION_FOLDER,
    FILE_SHA256,
    MODEL_FOLDER,
    PARENT,
    REPORT_FOLDER,
)
from tracking.spool import flatten
from tracking.store import connect, failures, log_folder, search_runs, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


def log_scores(run_file: Path, document: ScoresDocument) -> str:
    """Log the scores of a sweep to the run of the model that `run_file` (models/run.json) names.

    A child run a cell, with its card; on the parent a curve over the number of sampling steps for each
    combination of the other axes, such as `<metric>/eta_<X>`, and the whole document as an artifact. Logging
    the same again changes nothing. Returns the parent's id; DiffctlError when MLflow does not answer.
    """
    uri, identity = tracking_uri(), read_identity(run_file)
    with failures(uri):
        client = connect(uri)
        run_id = training_run(client, identity, data_name(document))
        parent = client.get_run(run_id)
        children = _children(client, parent)
        for name, cell in document.cells.items():
            child = children.get((name, fingerprint(cell.card)))
            _log_cell(client, parent, name, cell, child)
        client.log_dict(run_id, as_values(document), f"{EVALUATION_FOLDER}/{SCORES.name}")
        client.set_tag(run_id, BEST, told(document.best))
    return run_id


def data_name(document: ScoresDocument) -> str:
    """The data set that the scores are of."""
    cell = next(iter(document.cells.values()))
    return str(cell.card["data"])


def _children(client: "MlflowClient", parent: "Run") -> "dict[tuple[str, str], Run]":
    """The cells that are there, by name and card's fingerprint."""
    query = f"tags.`{PARENT}` = '{parent.info.run_id}'"
    runs = search_runs(client, [parent.info.experiment_id], query)
    return {(run.data.tags.get(CELL, ""), run.data.tags.get(CARD, "")): run for run in runs}


def _log_cell(
    client: "MlflowClient", parent: "Run", name: str, cell: CellScores, child: "Run | None"
) -> None:
    from mlflow.entities import Metric, Param

    if child is None:
        tags = {PARENT: parent.info.run_id, CELL: name, CARD: fingerprint(cell.card)}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=name)
    # A score's time is its child's start: MLflow ignores a point that it has already.
    time, run_id = child.info.start_time, child.info.run_id
    scores = [Metric(key, value, time, 0) for key, value in cell.scores.items()]
    params = [Param(key, value) for key, value in flatten(cell.card).items()]
    client.log_batch(run_id, metrics=scores, params=params)
    if child.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    curves = [
        Metric(f"{key}/{_series(cell)}", value, time, cell.steps)
        for key, value in cell.scores.items()
        if not is_aside(key)
    ]
    client.log_batch(parent.info.run_id, metrics=curves)


def _series(cell: CellScores) -> str:
    """All of a cell's axes but the steps; a metric's key may hold no plus sign."""
    values = {axis: value for axis, value in cell.axes.items() if axis != "steps"}
    return "-".join(f"{axis}_{value}" for axis, value in values.items()).replace("+", "p")


def log_report(run_file: Path, folder: Path, scores_file: Path = SCORES) -> str:
    """Log a report's folder to the run of the model that `run_file` names; returns the run's id."""
    uri, identity = tracking_uri(), read_identity(run_file)
    with failures(uri):
        client = connect(uri)
        run_id = training_run(client, identity, data_name(read_scores(scores_file)))
        log_folder(client, run_id, folder, REPORT_FOLDER)
    return run_id


def fetch_scores(run: "Run") -> ScoresDocument:
    """The scores document of a training's run; UsageError when it was never evaluated."""
    uri = tracking_uri()
    with failures(uri), tempfile.TemporaryDirectory() as scratch:
        client = connect(uri)
        run_id = run.info.run_id
        if not any(
            file.path.endswith(SCORES.name) for file in client.list_artifacts(run_id, EVALUATION_FOLDER)
        ):
            raise UsageError(f"run {run.info.run_name} ({run_id}) has no scores: it was not evaluated")
        path = client.download_artifacts(run_id, f"{EVALUATION_FOLDER}/{SCORES.name}", scratch)
        return read_scores(Path(path))


def fetch_model(name: str) -> Path:
    """The model file of the run that `name` means (see `find_run`), from a cache addressed by content.

    UsageError when the run has no model; DiffctlError when its file is not the one that was logged.
    """
    uri, run = tracking_uri(), find_run(name)
    sha256 = run.data.tags.get(FILE_SHA256)
    if sha256 is None:
        raise UsageError(
            f"run {run.info.run_name} ({run.info.run_id}) has no model in MLflow: "
            "its training has not ended, or `diffctl sync` has to deliver it"
        )

    def download(folder: Path) -> Path:
        with failures(uri):
            path = f"{MODEL_FOLDER}/{WEIGHTS}"
            return Path(connect(uri).download_artifacts(run.info.run_id, path, str(folder)))

    return cached_model(sha256, download)
