"""Scores, pictures, reports and models of training runs in MLflow, logged without a spool.

Each cell of a sweep is a child run of the training's run, with scores, card and picture.
"""

import math
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.choice.ranking import is_auxiliary
from diffusion.choice.selection import describe_selection
from diffusion.images.pictures import read_picture, to_pil
from diffusion.images.store import Images
from diffusion.layout import REPORT, SCORES
from diffusion.protocol.card import EXTRACTOR_FIELDS
from diffusion.protocol.scores_document import CellScores, ScoresDocument, document_values, read_scores
from diffusion.system.errors import DiffctlWarning, UsageError
from diffusion.system.renamed import translate_names
from diffusion.system.section import fingerprint
from tracking import keys, mlflow_pages
from tracking.experiments import log_folder, search_runs
from tracking.registry.model_versions import (
    cached_model,
    download_weights,
    fetch_version_networks,
    unreadable_reason,
)
from tracking.runs.run_lookup import ensure_training_run, find_run, read_identity, training_runs
from tracking.spool.event_log import flatten
from tracking.store import mlflow_client, readable, store_exists

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SCORES_PATH = f"{keys.EVALUATION_FOLDER}/{SCORES.name}"
SAMPLES = "samples"  # the series of a cell's picture
NOT_IN_KEYS = re.compile(r"[^\w.-]")  # characters that MLflow refuses in the name of a metric
MAX_METRICS = 1000  # in a request to MLflow
MAX_SEEDS = 50  # runs of a setting that are read, the newest


def log_scores(document: ScoresDocument) -> str:
    """Log the scores of a sweep to the training's run that models/run.json names.

    Each cell is a child run with its card. The parent has the document as an artifact, and curves over the
    number of sampling steps for each combination of the other axes, such as `<metric>/eta_<X>`. Logging the
    same again changes nothing. Returns the parent's id; DiffctlError if MLflow does not answer.
    """
    identity = read_identity()
    with mlflow_client() as client:
        run_id = ensure_training_run(client, identity, data_name(document))
        parent = client.get_run(run_id)
        logged = _log_cells(client, parent, document)
        client.log_dict(run_id, document_values(document), SCORES_PATH)
        _log_best(client, run_id, document, logged[document.best.cell].info.start_time)
        _update_pages(client, parent, identity.fingerprint, document)
    return run_id


def log_sweep(run_id: str, document: ScoresDocument) -> None:
    """Log the scores of another sweep of a run's model: its cells, and the document as an artifact.

    The run's own evaluation stays. Logging the same again changes nothing. MlflowError if MLflow fails.
    """
    values = document_values(document)
    name = fingerprint({key: value for key, value in values.items() if key != "diffctl"})
    with mlflow_client() as client:
        _log_cells(client, client.get_run(run_id), document)
        client.log_dict(run_id, values, f"{keys.EVALUATION_FOLDER}/sweeps/{name}.json")


def log_edit_scores(run_id: str, document: Mapping[str, Any]) -> None:
    """Log the scores of a model's edits to its run, by NFE, and as JSON.

    The key is `edit/<operator>/<method>/<protocol>/<score>`, with the protocol of the JSON's cells. Logging
    the same again changes nothing.
    """
    from mlflow.entities import Metric

    with mlflow_client() as client:
        time = client.get_run(run_id).info.start_time  # MLflow ignores a point that it has already
        points = [
            Metric(
                f"edit/{NOT_IN_KEYS.sub('_', cell['operator'])}/{cell['method']}/{cell['protocol']}/{name}",
                value,
                time,
                cell["nfe"],
            )
            for cell in document["cells"]
            for name, value in cell["scores"].items()
            if math.isfinite(value)
        ]
        for start in range(0, len(points), MAX_METRICS):
            client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])
        name = fingerprint(document["cells"])
        client.log_dict(run_id, dict(document), f"{keys.EVALUATION_FOLDER}/edits/{name}.json")


def log_report() -> None:
    """Log report/ to the training's run that models/run.json names."""
    with mlflow_client() as client:
        run_id = ensure_training_run(client, read_identity(), data_name(read_scores(SCORES)))
        log_folder(client, run_id, REPORT, keys.REPORT_FOLDER)


def _log_cells(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Log a child run for each cell, and its points on the parent's curves; return the children by cell."""
    children = _children(client, parent, document)
    return {
        name: _log_cell(client, parent, name, cell, children.get(name))
        for name, cell in document.cells.items()
    }


def _log_cell(
    client: "MlflowClient", parent: "Run", name: str, cell: CellScores, child: "Run | None"
) -> "Run":
    from mlflow.entities import Metric, Param

    if child is None:
        tags = {keys.PARENT: parent.info.run_id, keys.CELL: name, keys.CARD: _card_fingerprint(cell)}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=name)
    # MLflow ignores a point that it has already, so all scores have the time of the child's start.
    time, run_id = child.info.start_time, child.info.run_id
    spaces = {
        space: {field: scores.card[field] for field in EXTRACTOR_FIELDS if field in scores.card}
        for space, scores in cell.spaces.items()
    }
    points = [Metric(key, value, time, 0) for key, value in cell.all_scores.items()]
    params = [Param(key, value) for key, value in flatten({**cell.card, **spaces}).items()]
    client.log_batch(run_id, metrics=points, params=params)
    if child.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    curves = [
        Metric(f"{key}/{mlflow_pages.series_name(cell)}", value, time, cell.steps)
        for key, value in cell.all_scores.items()
        if not is_auxiliary(key)
    ]
    client.log_batch(parent.info.run_id, metrics=curves)
    return child


def _children(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Return the child runs of the cells that are logged, by name."""
    query = f"tags.`{keys.PARENT}` = '{parent.info.run_id}'"
    runs = search_runs(client, [parent.info.experiment_id], query)
    logged = {(run.data.tags.get(keys.CELL), run.data.tags.get(keys.CARD)): run for run in runs}
    cards = {name: _card_fingerprint(cell) for name, cell in document.cells.items()}
    return {name: logged[name, card] for name, card in cards.items() if (name, card) in logged}


def _card_fingerprint(cell: CellScores) -> str:
    """Return the fingerprint of a cell's card, with those of further feature spaces."""
    spaces = {name: scores.card for name, scores in cell.spaces.items()}
    return fingerprint({**cell.card, "spaces": spaces} if spaces else cell.card)


def _log_best(client: "MlflowClient", run_id: str, document: ScoresDocument, time: int) -> None:
    """Log the best cell's scores and axes as metrics at one `time`, so once, and its setting as a tag."""
    from mlflow.entities import Metric

    best = document.cells[document.best.cell]
    values = mlflow_pages.best_scores(document)
    values |= {"best/steps": best.steps, "best/eta": best.eta, "best/nfe": best.nfe}
    values |= {} if best.ema is None else {"best/ema": best.ema}
    client.log_batch(run_id, [Metric(name, value, time, 0) for name, value in values.items()])
    client.set_tag(run_id, keys.BEST, describe_selection(document.best))
    if document.training is not None:
        client.set_tag(run_id, keys.SETTING, document.training.setting)


def _update_pages(client: "MlflowClient", parent: "Run", training: str, document: ScoresDocument) -> None:
    """Update the descriptions of the run and its experiment where they differ."""
    params = translate_names("params", parent.data.params)
    text = mlflow_pages.training_note(params, training) + mlflow_pages.scores_note(document)
    for name, value in mlflow_pages.changed_note(text, parent.data.tags).items():
        client.set_tag(parent.info.run_id, name, value)
    experiment = client.get_experiment(parent.info.experiment_id)
    name, value = mlflow_pages.PRIMARY_METRIC, f"best/{document.best.metric}"
    if experiment.tags.get(name) != value:
        client.set_experiment_tag(experiment.experiment_id, name, value)


def log_samples(run_id: str, document: ScoresDocument, pictures: Mapping[str, Images]) -> None:
    """Log each scored cell's picture to its child run and to the training's run; existing ones stay.

    In the training's run, the series `samples-eta_<X>` has the number of sampling steps as its step: MLflow's
    UI has a slider over the steps, and compares several trainings. DiffctlError if MLflow does not answer.
    """
    with mlflow_client() as client:
        parent = client.get_run(run_id)
        for name, child in _children(client, parent, document).items():
            cell, time = document.cells[name], child.info.start_time
            series = f"{SAMPLES}-{mlflow_pages.series_name(cell)}"
            _log_picture(client, child, (SAMPLES, 0, time), pictures[name])
            _log_picture(client, parent, (series, cell.steps, time), pictures[name])


def fetch_samples(run: "Run", document: ScoresDocument) -> dict[str, Images]:
    """Return the picture (H, W, 3) of each cell that has one; DiffctlError if MLflow does not answer."""
    found: dict[str, Images] = {}
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        for name, child in _children(client, run, document).items():
            paths = _picture_paths(client, child)
            logged = [path for path in paths if re.match(rf"images/{SAMPLES}\Wstep\W.*\.png", path)]
            if logged:
                file = client.download_artifacts(child.info.run_id, logged[0], scratch)
                found[name] = read_picture(Path(file), None, channels=3)
    return found


def _picture_paths(client: "MlflowClient", run: "Run") -> list[str]:
    return [file.path for file in client.list_artifacts(run.info.run_id, "images")]


def _log_picture(client: "MlflowClient", run: "Run", place: tuple[str, int, int], picture: Images) -> None:
    """Log a picture at `place` (series, step, time) unless the run has one there."""
    key, step, time = place
    pattern = re.compile(rf"images/{re.escape(key)}\Wstep\W{step}\Wtimestamp\W{time}\W")
    if not any(map(pattern.match, _picture_paths(client, run))):
        image, run_id = to_pil(picture), run.info.run_id
        client.log_image(run_id, image, key=key, step=step, timestamp=time, synchronous=True)


def data_name(document: ScoresDocument) -> str:
    """Return the data set of the scores."""
    return str(next(iter(document.cells.values())).card["data"])


def fetch_scores(run: "Run") -> ScoresDocument:
    """Return the scores of a training's run; UsageError if it was not evaluated."""
    run_id = run.info.run_id
    with mlflow_client() as client, tempfile.TemporaryDirectory() as scratch:
        if SCORES_PATH not in [file.path for file in client.list_artifacts(run_id, keys.EVALUATION_FOLDER)]:
            raise UsageError(f"run {run.info.run_name} ({run_id}) has no scores: it was not evaluated")
        return read_scores(Path(client.download_artifacts(run_id, SCORES_PATH, scratch)))


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
                text = f"the scores of {run.info.run_name} ({run.info.run_id}) are left out: {why}"
                warnings.warn(text, DiffctlWarning, stacklevel=2)
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
        if newest and keys.EMA_SIGMA_REL in translate_names("tags", newest.tags):
            return fetch_version_networks(client, newest).model
        if sha256 is None:
            raise UsageError(f"run {run.info.run_name} ({run_id}) has no model in MLflow: try `diffctl sync`")
        return cached_model(sha256, partial(download_weights, client, run_id, keys.MODEL_FOLDER))
