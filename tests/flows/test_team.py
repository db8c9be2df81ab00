"""The servers of deploy/team/: authentication, deployments, concurrent trainings, secrets in logs."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from diffusion.layout import TRAIN_RUNS
from diffusion.system.errors import DiffctlWarning
from diffusion.system.files import write_text
from tests.conftest import diffctl, start_diffctl
from tests.helpers.small import own_code, small_project
from tests.helpers.spools import EXPERIMENT, logged, open_spool, stored, the_run, write_points
from tests.helpers.team import (
    ADMIN_PASSWORD,
    COLLEAGUE,
    DATABASE_PASSWORD,
    SECRETS,
    TEAM,
    Team,
    commands,
    read_settings,
    team,
)
from tracking.experiments import ensure_experiment
from tracking.keys import CHAMPION
from tracking.registry.champion_log import ensure_model, make_move, read_history
from tracking.spool.delivery import deliver
from tracking.store import connect

TRAININGS = 4


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with team(tmp_path_factory.mktemp("team")) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A team member's checkout."""
    return small_project(tmp_path / "project")


def status(url: str, **headers: str) -> int:
    """The status of a GET."""
    reply = requests.get(url, headers=headers, timeout=30)
    assert reply.ok or not any(secret in reply.text for secret in SECRETS)
    return reply.status_code


def test_units_and_compose_run_the_same_commands_and_hold_no_password() -> None:
    for name, words in commands().items():
        unit = (TEAM / f"diffctl-{name}.service").read_text()
        assert f"ExecStart=/srv/diffctl/.venv/bin/{' '.join(words)}\n" in unit
    empty = {name for name, value in read_settings().items() if not value}
    assert empty == {
        "PGPASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "PREFECT_SERVER_API_AUTH_STRING",
    }


@pytest.mark.long
def test_requests_without_credentials_are_refused(servers: Team, project: Path) -> None:
    assert status(f"{servers.mlflow}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert status(f"{servers.mlflow}/") == 401
    assert status(f"{servers.mlflow}/api/2.0/mlflow/experiments/search", Host="evil.example") == 403
    assert status(f"{servers.prefect}/admin/settings") == 401
    addresses = {"MLFLOW_TRACKING_URI": servers.mlflow, "PREFECT_API_URL": servers.prefect}
    env = own_code(project) | dict.fromkeys(servers.client, "") | addresses
    wrong = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "x"}
    for command_name, variables, remedy in (
        ("runs", {}, "MLFLOW_TRACKING_USERNAME"),
        ("runs", wrong, "MLFLOW_TRACKING_USERNAME"),
        ("deploy", {}, "PREFECT_API_AUTH_STRING"),
    ):
        refused = diffctl(project, command_name, env=env | variables)
        assert refused.returncode == 2, refused.stderr
        assert remedy in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.long
def test_a_member_deploys_and_lists_queued_runs(servers: Team, project: Path) -> None:
    env = own_code(project) | servers.client
    deployed = diffctl(project, "deploy", env=env)
    assert (deployed.returncode, deployed.stderr) == (0, ""), "leases are in files"
    assert diffctl(project, "status", "--json", env=env).returncode == 0
    assert count_rows(servers, "prefect", "deployment") == 3


def count_rows(servers: Team, database: str, table: str) -> int:
    """Return the number of rows of a table."""
    import psycopg  # without it the fixture `servers` skips the test

    place = {"host": "127.0.0.1", "port": servers.database_port, "user": "diffctl", "dbname": database}
    with psycopg.connect(password=DATABASE_PASSWORD, **place) as connection:
        return connection.execute(f"select count(*) from {table}").fetchone()[0]


def colleague(servers: Team, name: str) -> dict[str, str]:
    """The credentials of a user that the admin creates."""
    url, user = f"{servers.mlflow}/api/2.0/mlflow/users/create", {"username": name, "password": COLLEAGUE}
    assert requests.post(url, json=user, auth=("admin", ADMIN_PASSWORD), timeout=60).status_code == 200
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": COLLEAGUE}


@pytest.mark.long
def test_concurrent_trainings_log_every_point_once(servers, tmp_path, monkeypatch) -> None:
    for name, value in servers.client.items():
        monkeypatch.setenv(name, value)
    users = [{}, colleague(servers, "ada")]
    spools = {}
    for number in range(TRAININGS):
        key = f"team{number}"
        folder = tmp_path / key / TRAIN_RUNS / key
        spool = open_spool(folder, key)
        write_points(spool, 1, 401)
        spool.close("FINISHED")
        spools[key] = folder
    senders = [
        start_diffctl(tmp_path / key, "sync", env=users[number % len(users)])
        for number, key in enumerate(spools)
    ]
    for sender in senders:
        _, stderr = sender.communicate(timeout=240)
        assert sender.returncode == 0, stderr
    for key, folder in spools.items():
        assert stored(servers.mlflow, key) == logged(folder)
    assert count_rows(servers, "mlflow", "metrics") == sum(len(logged(folder)) for folder in spools.values())


@pytest.mark.long
def test_member_who_may_not_delete_rolls_back_and_drops_checkpoints(servers, tmp_path, monkeypatch) -> None:
    for name, value in servers.client.items():
        monkeypatch.setenv(name, value)
    client = connect(servers.mlflow)
    ensure_experiment(client, EXPERIMENT)
    ensure_model(client, "it")
    for number in (1, 2):
        client.create_model_version("it", "s3://nowhere/model")
        make_move(client, read_history(client, "it"), how="gate", after=number, reason="better")
    for name, value in colleague(servers, "bob").items():
        monkeypatch.setenv(name, value)
    with pytest.warns(DiffctlWarning, match="alias previous of it stays"):
        rolled_back = make_move(client, read_history(client, "it"), how="rollback", after=1, reason="worse")
    assert (rolled_back.holder, rolled_back.aliases[CHAMPION]) == (1, 1)

    spool = open_spool(tmp_path, "bob")
    for step in (10, 20):
        file = tmp_path / f"{step}.safetensors"
        write_text(file, f"weights {step}")
        spool.checkpoint(step, file, {"validation/kd": 1.0})
    spool.dropped(10)
    spool.close("FINISHED")
    assert deliver(tmp_path, servers.mlflow).rejected == 1
    assert the_run(servers.mlflow, "bob").info.status == "FINISHED"


@pytest.mark.long
def test_no_log_and_no_command_line_contains_a_password(servers: Team) -> None:
    files = [path for path in servers.folder.rglob("*") if path.is_file()]
    running = psutil.process_iter(["cmdline"])
    shown = [path.read_text(errors="replace") for path in files]
    shown = " ".join([*shown, *(word for one in running for word in one.info["cmdline"] or [])])
    assert "diffctl" in shown
    assert [secret for secret in SECRETS if secret in shown] == []
