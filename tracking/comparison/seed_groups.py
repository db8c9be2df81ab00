"""Other trainings of a setting, as MLflow knows them: what differs from one in its seed alone."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import UsageError
from tracking.keys import SETTING, experiment_name, model_name
from tracking.registry.model_versions import fetch_version_scores, is_diffctl_version
from tracking.runs.scored_runs import data_name, fetch_scores
from tracking.store import connect, database_file, newest_runs, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MOST = 50  # runs of a setting that are looked at, and versions: the newest


def other_seeds(document: ScoresDocument) -> list[ScoresDocument]:
    """The scores of trainings of the same setting with other seeds: of runs, then of registered versions.

    The newest first. UsageError where the scores do not say which training their model is of.
    """
    training, uri = document.training, tracking_uri()
    if training is None:
        raise UsageError("these scores do not say which training their model is of, so it has no other seeds")
    database = database_file(uri)
    if database is not None and not database.exists():  # it takes seconds to make, for nothing
        return []
    with translate_errors(uri):
        client = connect(uri)
        found = list(_documents(client, data_name(document), training.setting))
    return [one for one in found if one.training is not None and one.training.seed != training.seed]


def versions_of_setting(
    client: "MlflowClient", name: str, setting: str, most: int = MOST
) -> "list[ModelVersion]":
    """The newest registered versions of a setting, the newest first."""
    query = f"name = '{name}' AND tags.`{SETTING}` = '{setting}'"
    return list(client.search_model_versions(query, max_results=most, order_by=["version_number DESC"]))


def _documents(client: "MlflowClient", data: str, setting: str) -> Iterator[ScoresDocument]:
    runs = _runs_of_setting(client, data, setting)
    for run in runs:
        with suppress(UsageError):  # its scores were removed
            yield fetch_scores(run)
    seen = {run.info.run_id for run in runs}
    for version in versions_of_setting(client, model_name(data), setting):
        if version.run_id not in seen and is_diffctl_version(version):
            yield fetch_version_scores(client, version)


def _runs_of_setting(client: "MlflowClient", data: str, setting: str) -> "list[Run]":
    experiment = client.get_experiment_by_name(experiment_name(data))
    if experiment is None:
        return []
    return newest_runs(client, [experiment.experiment_id], f"tags.`{SETTING}` = '{setting}'", MOST)
