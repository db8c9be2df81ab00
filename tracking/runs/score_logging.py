"""Scores, pictures and reports of training runs, logged to MLflow without a spool.

Each cell of a sweep is a child run of the training's run, with scores, card and picture.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusion.choice.ranking import is_auxiliary
from diffusion.choice.selection import describe_selection
from diffusion.images.pictures import to_pil
from diffusion.images.store import Images
from diffusion.layout import REPORT, SCORES
from diffusion.protocol.card import EXTRACTOR_FIELDS
from diffusion.protocol.scores_document import CellScores, ScoresDocument, document_values, read_scores
from diffusion.system.section import fingerprint
from tracking import keys, mlflow_pages
from tracking.experiments import log_folder, log_picture
from tracking.runs.run_lookup import ensure_training_run, read_identity
from tracking.runs.scored_runs import (
    SAMPLES,
    SCORES_PATH,
    card_fingerprint,
    child_runs,
    data_name,
    extends_evaluation,
)
from tracking.spool.event_log import flatten
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

NOT_IN_KEYS = re.compile(r"[^\w.-]")  # characters that MLflow refuses in the name of a metric
MAX_METRICS = 1000  # in a request to MLflow


def log_scores(document: ScoresDocument) -> str:
    """Log the scores of a sweep to the training's run that models/run.json names.

    Each cell is a child run with its card. The parent has the document as an artifact, and curves over the
    number of sampling steps for each combination of the other axes, such as `<metric>/eta_<X>`. Logging the
    same again changes nothing. MLflow deletes no point: those of earlier scores stay, and the newest of each
    step is of these. Returns the parent's id; DiffctlError if MLflow does not answer.
    """
    identity = read_identity()
    with mlflow_client() as client:
        run_id = ensure_training_run(client, identity, data_name(document))
        parent = client.get_run(run_id)
        children = _log_cells(client, parent, document)
        _log_points(client, parent, _curves(document, children))
        client.log_dict(run_id, document_values(document), SCORES_PATH)
        _log_best(client, parent, document, children[document.best.cell].info.start_time)
        _update_pages(client, parent, identity.fingerprint, document)
    return run_id


def log_sweep(run_id: str, document: ScoresDocument) -> None:
    """Log the scores of another sweep of a run's model: its cells, and the document as an artifact.

    The run's own evaluation stays: its curves only get further steps, if they are of the same protocol.
    Logging the same again changes nothing. MlflowError if MLflow fails.
    """
    values = document_values(document)
    name = fingerprint({key: value for key, value in values.items() if key != "diffctl"})
    with mlflow_client() as client:
        parent = client.get_run(run_id)
        children = _log_cells(client, parent, document)
        if extends_evaluation(parent, document):
            _log_points(client, parent, _curves(document, children), replace=False)
        client.log_dict(run_id, values, f"{keys.EVALUATION_FOLDER}/sweeps/{name}.json")


def log_edit_scores(run_id: str, document: Mapping[str, Any]) -> None:
    """Log the scores of a model's edits to its run, by NFE, and as JSON.

    The key is `edit/<operator>/<method>/<protocol>/<score>`, with the protocol of the JSON's cells. Logging
    the same again changes nothing.
    """
    from mlflow.entities import Metric

    with mlflow_client() as client:
        run = client.get_run(run_id)
        points = [
            Metric(
                f"edit/{NOT_IN_KEYS.sub('_', cell['operator'])}/{cell['method']}/{cell['protocol']}/{name}",
                value,
                run.info.start_time,
                cell["nfe"],
            )
            for cell in document["cells"]
            for name, value in cell["scores"].items()
            if math.isfinite(value)
        ]
        _log_points(client, run, points)
        name = fingerprint(document["cells"])
        client.log_dict(run_id, dict(document), f"{keys.EVALUATION_FOLDER}/edits/{name}.json")


def log_report() -> None:
    """Log report/ to the training's run that models/run.json names."""
    with mlflow_client() as client:
        run_id = ensure_training_run(client, read_identity(), data_name(read_scores(SCORES)))
        log_folder(client, run_id, REPORT, keys.REPORT_FOLDER)


def _log_cells(client: "MlflowClient", parent: "Run", document: ScoresDocument) -> "dict[str, Run]":
    """Log a child run for each cell; return the children by cell."""
    children = child_runs(client, parent, document)
    return {
        name: _log_cell(client, parent, name, cell, children.get(name))
        for name, cell in document.cells.items()
    }


def _log_cell(
    client: "MlflowClient", parent: "Run", name: str, cell: CellScores, child: "Run | None"
) -> "Run":
    from mlflow.entities import Metric, Param

    if child is None:
        tags = {keys.PARENT: parent.info.run_id, keys.CELL: name, keys.CARD: card_fingerprint(cell)}
        child = client.create_run(parent.info.experiment_id, tags=tags, run_name=name)
    time, run_id = child.info.start_time, child.info.run_id
    spaces = {
        space: {field: scores.card[field] for field in EXTRACTOR_FIELDS if field in scores.card}
        for space, scores in cell.spaces.items()
    }
    points = [Metric(key, value, time, 0) for key, value in cell.all_scores.items()]
    params = [Param(key, value) for key, value in flatten({**cell.card, **spaces}).items()]
    client.log_batch(run_id, params=params)
    _log_points(client, child, points)
    if child.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    return child


def _curves(document: ScoresDocument, children: "Mapping[str, Run]") -> "list[Metric]":
    """Return the points of the cells on the curves of their parent, at the times of the children's starts."""
    from mlflow.entities import Metric

    return [
        Metric(f"{key}/{mlflow_pages.series_name(cell)}", value, children[name].info.start_time, cell.steps)
        for name, cell in document.cells.items()
        for key, value in cell.all_scores.items()
        if not is_auxiliary(key)
    ]


def _log_points(
    client: "MlflowClient", run: "Run", points: "Sequence[Metric]", *, replace: bool = True
) -> None:
    """Log the points that differ from the newest ones of their series and step, at a later time than those.

    Without `replace` only those of steps that have no point.
    """
    from mlflow.entities import Metric

    newest = run.data.metrics
    points = [one for one in points if one.step or newest.get(one.key) != one.value]  # step 0 is the only one
    logged: dict[tuple[str, int], Metric] = {}
    for key in {point.key for point in points} & newest.keys():
        for one in client.get_metric_history(run.info.run_id, key):
            other = logged.setdefault((key, one.step), one)
            if one.timestamp > other.timestamp:
                logged[key, one.step] = one
    new = []
    for point in points:
        before = logged.get((point.key, point.step))
        if before is None:
            new.append(point)
        elif replace and repr(before.value) != repr(float(point.value)):  # not !=: NaN is NaN
            new.append(Metric(point.key, point.value, before.timestamp + 1, point.step))
    for start in range(0, len(new), MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=new[start : start + MAX_METRICS])


def _log_best(client: "MlflowClient", run: "Run", document: ScoresDocument, time: int) -> None:
    """Log the best cell's scores and axes as metrics, first at `time`, and its setting as a tag.

    Those that only earlier scores have become NaN.
    """
    from mlflow.entities import Metric

    run_id = run.info.run_id
    best = document.cells[document.best.cell]
    values = mlflow_pages.best_scores(document)
    values |= {"best/steps": best.steps, "best/eta": best.eta, "best/nfe": best.nfe}
    values |= {} if best.ema is None else {"best/ema": best.ema}
    known = {name for name in run.data.metrics if name.startswith("best/")}
    values |= dict.fromkeys(known - values.keys(), math.nan)
    _log_points(client, run, [Metric(name, float(value), time, 0) for name, value in values.items()])
    client.set_tag(run_id, keys.BEST, describe_selection(document.best))
    if document.training is not None:
        client.set_tag(run_id, keys.SETTING, document.training.setting)


def _update_pages(client: "MlflowClient", parent: "Run", training: str, document: ScoresDocument) -> None:
    """Update the descriptions of the run and its experiment where they differ."""
    text = mlflow_pages.training_note(parent.data.params, training) + mlflow_pages.scores_note(document)
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
        for name, child in child_runs(client, parent, document).items():
            cell, time = document.cells[name], child.info.start_time
            series = f"{SAMPLES}-{mlflow_pages.series_name(cell)}"
            picture = to_pil(pictures[name])
            log_picture(client, child.info.run_id, (SAMPLES, 0, time), picture)
            log_picture(client, run_id, (series, cell.steps, time), picture)
