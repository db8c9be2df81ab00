"""A search in MLflow: a run that its trials' runs are children of, and the table that it ends with.

The parent is no training: it has no key, so that what lists trainings passes it by. It is made when the first
trial is delivered, under a lock: trials beside each other may be delivered at one moment.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import TRAIN_RUNS
from diffusion.system.locks import file_lock
from tracking.experiments import ensure_experiment, find_by_tags
from tracking.keys import PARENT, SEARCH, SEARCH_ROOT, experiment_name
from tracking.store import connect, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TABLE = "search.json"
LOCK = "search.lock"  # in the folder of the trainings


def join_search(client: "MlflowClient", run_id: str, key: str, trainings: Path) -> None:
    """Make the run of a trial a child of its search's, whose name a tag of the trial's has.

    `trainings` is the folder that the trial's training lies in, as those of the search's others.
    """
    run = client.get_run(run_id)
    name = run.data.tags.get(SEARCH, "search")
    client.set_tag(run_id, PARENT, _ensure_search(client, run.info.experiment_id, key, name, trainings))


def log_search(
    key: str,
    name: str,
    data: str,
    table: dict[str, Any],
    best: dict[str, float],
    trainings: Path = TRAIN_RUNS,
) -> str:
    """Log what a search has come to: its table as an artifact, the best group's values as metrics.

    Logging the same again changes nothing. Returns the run's id; MlflowError when MLflow does not answer.
    """
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        experiment = ensure_experiment(client, experiment_name(data))
        run_id = _ensure_search(client, experiment, key, name, trainings)
        client.log_dict(run_id, table, TABLE)
        logged = client.get_run(run_id).data.metrics
        for metric, value in best.items():
            if logged.get(metric) != value:
                client.log_metric(run_id, metric, value)
    return run_id


def _ensure_search(client: "MlflowClient", experiment: str, key: str, name: str, trainings: Path) -> str:
    """The id of the search's run, made when it is missing; nothing goes on in it, so it is finished."""
    with file_lock(trainings / LOCK):
        if found := find_by_tags(client, [experiment], {SEARCH_ROOT: key}):
            return str(found[0].info.run_id)
        run = client.create_run(experiment, tags={SEARCH_ROOT: key, SEARCH: name}, run_name=f"search {name}")
        client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)
