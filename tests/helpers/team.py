"""The team's servers of deploy/team/: PostgreSQL with a password, MLflow and Prefect on it."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.conftest import ROOT, command, environment
from tests.helpers.mlflow_server import free_port, running_server

TEAM = ROOT / "deploy/team"
DATABASE_PASSWORD = "the-database's-secret"
ADMIN_PASSWORD = "the-admin's-long-secret"
COLLEAGUE = "the-colleague's-secret"
SHARED = "team:the-shared-secret"
SECRETS = (DATABASE_PASSWORD, ADMIN_PASSWORD, COLLEAGUE, "the-shared-secret", "the-session-key")


def read_settings() -> dict[str, str]:
    """Return the variables of deploy/team/team.env."""
    lines = (TEAM / "team.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def commands() -> dict[str, list[str]]:
    """Return the commands of compose.yaml for MLflow and Prefect."""
    services = yaml.safe_load((TEAM / "compose.yaml").read_text())["services"]
    return {name: shlex.split(services[name]["command"]) for name in ("mlflow", "prefect")}


@dataclass(frozen=True)
class Team:
    """The servers' folder with logs, their addresses, and a client's variables."""

    folder: Path
    mlflow: str
    prefect: str
    database_port: str

    @property
    def client(self) -> dict[str, str]:
        """Return a team member's environment."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": ADMIN_PASSWORD,
            "PREFECT_API_URL": self.prefect,
            "PREFECT_API_AUTH_STRING": SHARED,
        }


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """Run both servers on a separate database during the block."""
    with postgres(DATABASE_PASSWORD) as database, ExitStack() as stack:
        made = Team(
            folder,
            f"http://127.0.0.1:{free_port()}",
            f"http://127.0.0.1:{free_port()}/api",
            database.rpartition(":")[2].split("/")[0],
        )
        env = _settings(made)
        server = f"postgresql://{env['PGUSER']}@127.0.0.1:{env['PGPORT']}/postgres"
        subprocess.run(
            ["psql", "--quiet", "--dbname", server, "--file", TEAM / "databases.sql"],
            env=environment(env),
            check=True,
        )
        for name, address in (("mlflow", made.mlflow), ("prefect", made.prefect)):
            program, *arguments = commands()[name]
            line, log = [command()[0], "-m", program, *arguments], folder / f"{name}.log"
            stack.enter_context(
                running_server(line, f"{address}/health", log, cwd=folder, env=environment(env))
            )
        yield made


def _settings(made: Team) -> dict[str, str]:
    """Return team.env with secrets, and ports and folders of this test."""
    filled = {
        "PGPORT": made.database_port,
        "PGPASSWORD": DATABASE_PASSWORD,
        "MLFLOW_PORT": str(urlsplit(made.mlflow).port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_ARTIFACTS_DESTINATION": str(made.folder / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(TEAM / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "the-session-key",
        "MLFLOW_SERVER_ALLOWED_HOSTS": urlsplit(made.mlflow).netloc,
        "PREFECT_SERVER_API_PORT": str(urlsplit(made.prefect).port),
        "PREFECT_UI_API_URL": made.prefect,
        "PREFECT_HOME": str(made.folder / "prefect"),
        "PREFECT_UI_STATIC_DIRECTORY": str(made.folder / "prefect/ui"),
        "PREFECT_SERVER_API_AUTH_STRING": SHARED,
    }
    settings = read_settings()
    assert filled.keys() <= settings.keys()
    assert all(filled.get(name) or value for name, value in settings.items()), "nothing is left empty"
    # No variables of the surrounding environment.
    return {"MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": "", **settings, **filled}


PLACES = "/usr/lib/postgresql/*/bin/initdb"  # Debian's, not on PATH
SERVANT = "postgres"  # root may not run a server: Debian's user for it


@contextmanager
def postgres(password: str | None = None) -> Iterator[str]:
    """Yield the URI of an empty database; skip the test if PostgreSQL is not installed.

    With a password, connections need it; the URI does not contain it.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'diffctl[server]')")
    initdb = shutil.which("initdb") or max(map(str, Path("/").glob(PLACES[1:])), default=None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user = SERVANT if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="diffctl-postgres-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        port = free_port()

        def run(program: str, *arguments: str) -> None:
            command = [str(Path(initdb).parent / program), "-D", f"{folder}/data", *arguments]
            with open(Path(folder) / "log", "ab") as log:
                subprocess.run(command, user=user, cwd=folder, check=True, stdout=log, stderr=log)

        secret = Path(folder) / "password"
        secret.write_text(password or "")
        auth = ["--auth=scram-sha-256", f"--pwfile={secret}"] if password else ["--auth=trust"]
        run("initdb", *auth, "--username=diffctl", "--encoding=UTF8", "--no-sync", "--locale=C.UTF-8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-o", options, "-l", f"{folder}/server.log")
        try:
            yield f"postgresql+psycopg://diffctl@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
