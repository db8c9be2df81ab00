"""A temporary server's database, made once for a test session: its first creation takes ten seconds."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from diffusion.locks import file_lock

START = "from flows.server import prefect_server\nwith prefect_server():\n    pass\n"


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the database, shared by the processes of the session."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent / "prefect" if "popen-gw" in folder.name else folder / "prefect"
    with file_lock(shared / "lock"):
        if not (shared / ".prefect/made").exists():
            env = {**os.environ, "PREFECT_API_URL": ""}
            subprocess.run([sys.executable, "-c", START], cwd=shared, env=env, check=True)
            (shared / ".prefect/made").touch()
    return shared / ".prefect"


def with_database(folder: Path, database: Path) -> None:
    """Give the project in the folder the database."""
    shutil.copytree(database, folder / ".prefect")


def recorded(folder: Path) -> dict[str, str]:
    """What the folder's temporary server knows at its end: the state of each flow and task by name."""
    runs = (
        "SELECT flow.name, state_name FROM flow_run JOIN flow ON flow.id = flow_id ORDER BY flow_run.created"
    )
    tasks = "SELECT name, state_name FROM task_run"
    with closing(sqlite3.connect(folder / ".prefect/prefect.db")) as database:
        return {name: state for query in (tasks, runs) for name, state in database.execute(query)}
