"""A training's scored weights as LoggedModels of MLflow: one per step, deleted with its checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.system.files import sha256_file
from tracking.keys import FILE_SHA256

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_TYPE = "diffctl-checkpoint"


def ensure_checkpoint(client: "MlflowClient", run_id: str, step: int, path: Path) -> str:
    """Return the id of the step's LoggedModel, created from the file at `path` if it is missing."""
    from mlflow.entities import LoggedModelOutput

    found = _find(client, run_id, step)
    if found is None:
        found = client.create_logged_model(
            experiment_id=client.get_run(run_id).info.experiment_id,
            name=_name(step),
            source_run_id=run_id,
            tags={FILE_SHA256: sha256_file(path)},
            params={"step": str(step)},
            model_type=MODEL_TYPE,
        )
    if found.status != "READY":
        client.log_model_artifact(found.model_id, str(path))
        client.log_outputs(run_id, [LoggedModelOutput(found.model_id, step)])
        client.finalize_logged_model(found.model_id, "READY")
    return str(found.model_id)


def drop_checkpoint(client: "MlflowClient", run_id: str, step: int) -> None:
    """Delete the step's LoggedModel if it exists; its scores stay in the run's curves."""
    found = _find(client, run_id, step)
    if found is not None:
        client.delete_logged_model(found.model_id)


def _find(client: "MlflowClient", run_id: str, step: int) -> Any:
    experiment = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}' AND name = '{_name(step)}'"
    found = client.search_logged_models([experiment], filter_string=query)
    return found[0] if found else None


def _name(step: int) -> str:
    return f"step-{step:09d}"
