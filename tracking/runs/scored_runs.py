"""Scores, reports and models of training runs in MLflow, logged without a spool."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.selection import describe_selection
from diffusion.layout import SCORES
from diffusion.protocol.scores_document import ScoresDocument, document_values, read_scores
from diffusion.system.errors import UsageError
from diffusion.system.renamed import translate_names
from diffusion.system.section import fingerprint
from diffusion.train.checkpoint.run_record import TrainingIdentity
from tracking.connectivity import redact_uri
from tracking.experiments import log_folder
from tracking.keys import (
    BEST,
    EMA_SIGMA_REL,
    EVALUATION_FOLDER,
    FILE_SHA256,
    KEY,
    MODEL_FOLDER,
    REPORT_FOLDER,
    SETTING,
)
from tracking.mlflow_pages import best_scores, changed_note, scores_note, training_note, view_tags
from tracking.registry.model_versions import (
    cached_model,
    download_weights,
    fetch_version_networks,
    is_diffctl_version,
)
from tracking.runs.cell_runs import log_cells
from tracking.runs.run_lookup import ensure_training_run, find_run, read_identity, training_runs
from tracking.store import mlflow_client, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


def log_scores(run_file: Path, document: ScoresDocument) -> str:
    """Log the scores of a sweep to the training's run that `run_file` (models/run.json) names.

    Each cell is a child run with its card. The parent has the document as an artifact, and curves over the
    number of sampling steps for each combination of the other axes, such as `<metric>/eta_<X>`. Logging the
    same again changes nothing. Returns the parent's id; DiffctlError if MLflow does not answer.
    """
    identity = read_identity(run_file)
    with mlflow_client() as client:
        run_id = ensure_training_run(client, identity, data_name(document))
        parent = client.get_run(run_id)
        logged = log_cells(client, parent, document)
        client.log_dict(run_id, document_values(document), f"{EVALUATION_FOLDER}/{SCORES.name}")
        _log_best(client, run_id, document, logged[document.best.cell].info.start_time)
        _update_pages(client, parent, identity.fingerprint, document)
    return run_id


def _log_best(client: "MlflowClient", run_id: str, document: ScoresDocument, time: int) -> None:
    """Log the best cell's scores and axes as metrics at one `time`, so once, and its setting as a tag."""
    from mlflow.entities import Metric

    best = document.cells[document.best.cell]
    values = best_scores(document)
    values |= {"best/steps": best.steps, "best/eta": best.eta, "best/nfe": best.nfe}
    values |= {} if best.ema is None else {"best/ema": best.ema}
    client.log_batch(run_id, [Metric(name, value, time, 0) for name, value in values.items()])
    client.set_tag(run_id, BEST, describe_selection(document.best))
    if document.training is not None:
        client.set_tag(run_id, SETTING, document.training.setting)


def _update_pages(client: "MlflowClient", parent: "Run", training: str, document: ScoresDocument) -> None:
    """Update the descriptions of the run and its experiment where they differ."""
    text = training_note(translate_names("params", parent.data.params), training) + scores_note(document)
    for name, value in changed_note(text, parent.data.tags).items():
        client.set_tag(parent.info.run_id, name, value)
    experiment = client.get_experiment(parent.info.experiment_id)
    for name, value in view_tags(document).items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def find_training_run(identity: TrainingIdentity) -> "Run":
    """Return the run of a training; UsageError if MLflow has none with its key."""
    with mlflow_client() as client:
        found = [run for run in training_runs(client) if run.data.tags.get(KEY) == identity.key]
    if not found:
        raise UsageError(f"MLflow at {redact_uri(tracking_uri())} has no run of the training {identity.key}")
    return found[0]


def log_sweep(run_id: str, document: ScoresDocument) -> str:
    """Log the scores of another sweep of a run's model: its cells, and the document as an artifact.

    The run's own evaluation stays. Logging the same again changes nothing. Returns the artifact's path;
    MlflowError if MLflow fails.
    """
    values = document_values(document)
    path = f"{EVALUATION_FOLDER}/sweeps/{fingerprint(values)}.json"
    with mlflow_client() as client:
        log_cells(client, client.get_run(run_id), document)
        client.log_dict(run_id, values, path)
    return path


def data_name(document: ScoresDocument) -> str:
    """Return the data set of the scores."""
    cell = next(iter(document.cells.values()))
    return str(cell.card["data"])


def log_report(run_file: Path, folder: Path, scores_file: Path = SCORES) -> str:
    """Log a report's folder to the training's run that `run_file` names; return the run's id."""
    identity = read_identity(run_file)
    with mlflow_client() as client:
        run_id = ensure_training_run(client, identity, data_name(read_scores(scores_file)))
        log_folder(client, run_id, folder, REPORT_FOLDER)
    return run_id


def fetch_scores(run: "Run") -> ScoresDocument:
    """Return the scores of a training's run; UsageError if it was not evaluated."""
    run_id, path = run.info.run_id, f"{EVALUATION_FOLDER}/{SCORES.name}"
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        if path not in [file.path for file in client.list_artifacts(run_id, EVALUATION_FOLDER)]:
            raise UsageError(f"run {run.info.run_name} ({run_id}) has no scores: it was not evaluated")
        return read_scores(Path(client.download_artifacts(run_id, path, scratch)))


def fetch_model(name: str) -> Path:
    """Return the model file of a run (see `find_run`) in the cache.

    If its newest version is an EMA profile, return that. UsageError without a model, DiffctlError if changed.
    """
    run = find_run(name)
    run_id, sha256 = run.info.run_id, run.data.tags.get(FILE_SHA256)
    with mlflow_client() as client:
        if profile := _registered_profile(client, run):
            return fetch_version_networks(client, profile).model
        if sha256 is None:
            raise UsageError(
                f"run {run.info.run_name} ({run_id}) has no model in MLflow: "
                "its training has not ended, or `diffctl sync` has to deliver it"
            )
        return cached_model(sha256, lambda folder: download_weights(client, run_id, MODEL_FOLDER, folder))


def _registered_profile(client: "MlflowClient", run: "Run") -> "ModelVersion | None":
    """Return the run's newest version if it is an EMA profile; None if it is the run's own model."""
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    ours = sorted(filter(is_diffctl_version, versions), key=lambda version: int(version.version))
    return ours[-1] if ours and EMA_SIGMA_REL in translate_names("tags", ours[-1].tags) else None
