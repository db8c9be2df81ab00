"""Prefect servers for tests. Their database is made once a session: its first creation takes ten seconds."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import RestartableServer
from tests.helpers.waiting import made_once, wait_until

START = "from flows.prefect_server.temporary_server import prefect_server\nwith prefect_server():\n    pass\n"


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the database, shared by the processes of the session."""

    def make(folder: Path) -> None:
        env = {**os.environ, "PREFECT_API_URL": ""}
        subprocess.run([sys.executable, "-c", START], cwd=folder, env=env, check=True)

    return made_once(tmp_path_factory, "prefect", make) / ".prefect"


def with_database(folder: Path, database: Path) -> None:
    """Give the project in the folder the database."""
    shutil.copytree(database, folder / ".prefect")


def recorded(folder: Path) -> dict[str, str]:
    """Return the last state of each flow and task by name in the temporary server's database."""
    runs = (
        "SELECT flow.name, state_name FROM flow_run JOIN flow ON flow.id = flow_id ORDER BY flow_run.created"
    )
    tasks = "SELECT name, state_name FROM task_run"
    with closing(sqlite3.connect(folder / ".prefect/prefect.db")) as database:
        return {name: state for query in (tasks, runs) for name, state in database.execute(query)}


class PrefectServer(RestartableServer):
    """A permanent server over the folder's database."""

    @property
    def url(self) -> str:
        return f"{self.uri}/api"

    def start(self) -> "PrefectServer":
        from flows.prefect_server.client import home_settings, is_healthy  # not installed for tests of a GPU

        settings = home_settings(self.folder / ".prefect")
        settings |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_URL": ""}
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_server.temporary_server", str(listener.fileno())],
                cwd=self.folder,
                env={**os.environ, **settings},
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        wait_until(lambda: is_healthy(self.url, timeout=5), 120)
        return self
