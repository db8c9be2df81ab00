"""A search in MLflow: one run that is the parent of its trials' runs and contains the final table.

The parent has no key, so lists of trainings omit it. It is created with the first trial, under a lock:
concurrent trials may be delivered at the same time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.layout import TRAIN_RUNS
from diffusion.system.locks import file_lock
from tracking.experiments import create_finished_run, ensure_experiment, find_by_tags
from tracking.keys import PARENT, SEARCH, SEARCH_ROOT, experiment_name
from tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TABLE = "search.json"
LOCK = "search.lock"  # in the folder of the trainings


def join_search(client: "MlflowClient", run_id: str, key: str, trainings: Path) -> None:
    """Make a trial's run a child of its search's run; the trial's tag contains the search's name.

    `trainings` is the folder of the search's trainings.
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
    """Log a search's table as an artifact, and the values of its best group as metrics; return the run's id.

    Logging the same again changes nothing. MlflowError if MLflow does not answer.
    """
    with mlflow_client() as client:
        experiment = ensure_experiment(client, experiment_name(data))
        run_id = _ensure_search(client, experiment, key, name, trainings)
        client.log_dict(run_id, table, TABLE)
        logged = client.get_run(run_id).data.metrics
        for metric, value in best.items():
            if logged.get(metric) != value:
                client.log_metric(run_id, metric, value)
    return run_id


def _ensure_search(client: "MlflowClient", experiment: str, key: str, name: str, trainings: Path) -> str:
    """Return the id of the search's run, created if it is missing."""
    with file_lock(trainings / LOCK):
        if found := find_by_tags(client, [experiment], {SEARCH_ROOT: key}):
            return str(found[0].info.run_id)
        return create_finished_run(client, experiment, f"search {name}", {SEARCH_ROOT: key, SEARCH: name})
