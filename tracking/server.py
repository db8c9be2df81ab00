"""MLflow's own server over a store: its command and its environment, for whoever runs it."""

import sys
from pathlib import Path

from tracking.store import ARTIFACTS

ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # which doubles the time of its start
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


def server_environment(uri: str) -> dict[str, str]:
    """The variables for a server of the store at `uri`, whose password no command line shows."""
    return ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}


def server_command(port: int) -> list[str]:
    """What serves on this machine alone the store that `server_environment` names.

    Artifacts lie in this folder's mlartifacts/, where every client of the machine reads and writes them
    itself: were they served, who uses the store's file could not read them.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-serve-artifacts", "--default-artifact-root", Path(ARTIFACTS).absolute().as_uri()]
    return [*command, "--workers", "1", "--uvicorn-opts", "--log-level warning"]
