"""Scores, reports and models of trainings in MLflow. These talk to MLflow directly and fail loudly."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.selection import describe_selection
from diffusion.layout import SCORES
from diffusion.protocol.scores_document import ScoresDocument, document_values, read_scores
from diffusion.system.errors import UsageError
from diffusion.system.renamed import translate_names
from diffusion.system.section import fingerprint
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
from tracking.registry.model_versions import WEIGHTS, cached_model, fetch_version_weights, is_diffctl_version
from tracking.runs.cell_runs import log_cells
from tracking.runs.run_lookup import (
    TrainingIdentity,
    ensure_training_run,
    find_run,
    read_identity,
    training_runs,
)
from tracking.store import connect, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


def log_scores(run_file: Path, document: ScoresDocument) -> str:
    """Log the scores of a sweep to the run of the model that `run_file` (models/run.json) names.

    A child run a cell, with its card; on the parent a curve over the number of sampling steps for each
    combination of the other axes, such as `<metric>/eta_<X>`, and the whole document as an artifact: all with
    the scores of every feature space. Logging the same again changes nothing. Returns the parent's id;
    DiffctlError when MLflow does not answer.
    """
    uri, identity = tracking_uri(), read_identity(run_file)
    with translate_errors(uri):
        client = connect(uri)
        run_id = ensure_training_run(client, identity, data_name(document))
        parent = client.get_run(run_id)
        logged = log_cells(client, parent, document)
        client.log_dict(run_id, document_values(document), f"{EVALUATION_FOLDER}/{SCORES.name}")
        _log_best(client, run_id, document, logged[document.best.cell].info.start_time)
        _show_in_ui(client, parent, identity.fingerprint, document)
    return run_id


def _log_best(client: "MlflowClient", run_id: str, document: ScoresDocument, time: int) -> None:
    """The best cell's scores and what it is as metrics, so that the UI has columns of them, and the setting.

    MLflow ignores a point that it has already: of one `time` the same scores are logged once.
    """
    from mlflow.entities import Metric

    best = document.cells[document.best.cell]
    values = best_scores(document)
    values |= {"best/steps": best.steps, "best/eta": best.eta, "best/evaluations": best.evaluations}
    values |= {} if best.ema is None else {"best/ema": best.ema}
    client.log_batch(run_id, [Metric(name, value, time, 0) for name, value in values.items()])
    client.set_tag(run_id, BEST, describe_selection(document.best))
    if document.training is not None:
        client.set_tag(run_id, SETTING, document.training.setting)


def _show_in_ui(client: "MlflowClient", parent: "Run", training: str, document: ScoresDocument) -> None:
    """What the pages of the run and of its experiment say, written where it is another one than before."""
    text = training_note(translate_names("params", parent.data.params), training) + scores_note(document)
    for name, value in changed_note(text, parent.data.tags).items():
        client.set_tag(parent.info.run_id, name, value)
    experiment = client.get_experiment(parent.info.experiment_id)
    for name, value in view_tags(document).items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def find_training_run(identity: TrainingIdentity) -> "Run":
    """The run of a training; UsageError where MLflow knows none of its key."""
    uri = tracking_uri()
    with translate_errors(uri):
        found = [run for run in training_runs(connect(uri)) if run.data.tags.get(KEY) == identity.key]
    if not found:
        raise UsageError(f"MLflow at {redact_uri(uri)} has no run of the training {identity.key}")
    return found[0]


def log_sweep(run_id: str, document: ScoresDocument) -> str:
    """Log the scores of a further sweep of a run's model: its cells, and the document as an artifact.

    What the run was evaluated with stays. Logging the same again changes nothing. Returns the artifact's
    path; an MlflowError when MLflow fails.
    """
    uri, values = tracking_uri(), document_values(document)
    path = f"{EVALUATION_FOLDER}/sweeps/{fingerprint(values)}.json"
    with translate_errors(uri):
        client = connect(uri)
        log_cells(client, client.get_run(run_id), document)
        client.log_dict(run_id, values, path)
    return path


def data_name(document: ScoresDocument) -> str:
    """The data set that the scores are of."""
    cell = next(iter(document.cells.values()))
    return str(cell.card["data"])


def log_report(run_file: Path, folder: Path, scores_file: Path = SCORES) -> str:
    """Log a report's folder to the run of the model that `run_file` names; returns the run's id."""
    uri, identity = tracking_uri(), read_identity(run_file)
    with translate_errors(uri):
        client = connect(uri)
        run_id = ensure_training_run(client, identity, data_name(read_scores(scores_file)))
        log_folder(client, run_id, folder, REPORT_FOLDER)
    return run_id


def fetch_scores(run: "Run") -> ScoresDocument:
    """The scores document of a training's run; UsageError when it was never evaluated."""
    uri = tracking_uri()
    with translate_errors(uri), tempfile.TemporaryDirectory() as scratch:
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

    Where an average of its weights was registered, the newest of these is its model. UsageError when the run
    has no model; DiffctlError when its file is not the one that was logged.
    """
    uri, run = tracking_uri(), find_run(name)
    if average := _registered_average(run):
        return fetch_version_weights(connect(uri), average)
    sha256 = run.data.tags.get(FILE_SHA256)
    if sha256 is None:
        raise UsageError(
            f"run {run.info.run_name} ({run.info.run_id}) has no model in MLflow: "
            "its training has not ended, or `diffctl sync` has to deliver it"
        )

    def download(folder: Path) -> Path:
        with translate_errors(uri):
            path = f"{MODEL_FOLDER}/{WEIGHTS}"
            return Path(connect(uri).download_artifacts(run.info.run_id, path, str(folder)))

    return cached_model(sha256, download)


def _registered_average(run: "Run") -> "ModelVersion | None":
    """The newest version of the run where that is an average of a width; None where it is the run's own."""
    uri = tracking_uri()
    with translate_errors(uri):
        versions = connect(uri).search_model_versions(f"run_id = '{run.info.run_id}'")
    ours = sorted(filter(is_diffctl_version, versions), key=lambda version: int(version.version))
    return ours[-1] if ours and EMA_SIGMA_REL in translate_names("tags", ours[-1].tags) else None
