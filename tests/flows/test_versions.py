"""A server that is older than the package here, or keeps its leases in memory, is told of in one sentence."""

import base64
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from cli.commands import check
from diffusion.system.errors import DiffctlWarning
from flows import versions
from flows.pipeline_steps import check_mlflow
from flows.prefect_server.deployments import IN_MEMORY, _warn_of_leases
from flows.prefect_server.local_servers import MLFLOW, PREFECT
from flows.prefect_server.prefect_settings import LEASES
from flows.versions import older
from tests.conftest import ROOT, diffctl
from tests.helpers.fake_server import fake_server
from tests.helpers.toy import script
from tracking.connectivity import MlflowError

OLD = {"/api/health": True, "/api/admin/version": "3.4.0", "/health": "OK", "/version": "3.1.0"}


def told(title: str, address: str, theirs: str) -> str:
    name = title.lower()
    return f"{title} at {address} is version {theirs}, older than the {version(name)} installed here"


def test_an_older_server_is_told_with_what_to_do() -> None:
    with fake_server(OLD) as server:
        by_prefect, by_mlflow = older(PREFECT, f"{server.url}/api/"), older(MLFLOW, server.url)
    assert by_prefect is not None
    assert by_mlflow is not None
    assert by_prefect.startswith(told("Prefect", f"{server.url}/api/", "3.4.0"))
    assert by_prefect.endswith("bring the server up to date, or install prefect==3.4.0 here")
    assert by_mlflow.startswith(told("MLflow", server.url, "3.1.0"))


@pytest.mark.parametrize(
    "said", [version("prefect"), "99.0", "<html>old</html>", "", "3", "3.4.0\n\x1b[31m", None]
)
def test_one_that_is_as_new_or_says_no_version_is_not(said: str | None) -> None:
    with fake_server({"/api/admin/version": said}) as server:
        assert older(PREFECT, f"{server.url}/api") is None
    assert older(PREFECT, f"{server.url}/api") is None, "it is gone"
    assert older(MLFLOW, "sqlite:////mlflow.db") is None


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=4), st.lists(st.integers(0, 30), min_size=2, max_size=4)
)
def test_versions_are_compared_as_numbers(one: list[int], other: list[int]) -> None:
    words = [".".join(map(str, numbers)) for numbers in (one, other)]
    assert (versions._numbers(words[0] + "rc1") < versions._numbers(words[1] + "+dirty")) == (one < other)


def test_it_says_who_asks_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with fake_server(OLD) as server:
        address = server.url.replace("//", "//me:secret@")
        sentences = [older(PREFECT, f"{server.url}/api"), older(MLFLOW, server.url), older(MLFLOW, address)]
    assert all(sentence and "secret" not in sentence for sentence in sentences)
    basic = [f"Basic {base64.b64encode(pair).decode()}" for pair in (b"team:secret", b"me:secret")]
    assert [who for _, who in server.asked] == [basic[0], "Bearer secret", basic[1]]


@pytest.mark.slow
@pytest.mark.parametrize("theirs", ["3.4.0", "2.20.3"])  # the second Prefect's client refuses by itself
def test_deploying_on_an_older_server_tells_before_it_is_refused(theirs: str) -> None:
    with fake_server({**OLD, "/api/admin/version": theirs}) as server:
        env = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
        done = diffctl(ROOT, "deploy", env=env)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert told("Prefect", f"{server.url}/api", theirs) in first
    assert f"Prefect at {server.url}/api refuses: " in last


RUN = """
from flows.prefect_server.flow_engine import run_flow
from flows.prefect_server.temporary_server import quiet_client
url = "{url}/api"
with quiet_client(url):
    from prefect import flow

    @flow
    async def nothing():
        pass

    run_flow(lambda: nothing(return_state=True), url)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "why"), [("3.4.0", "422"), ("2.20.3", "incompatible versions")])
def test_a_run_goes_on_without_a_server_that_refuses_it(theirs: str, why: str, tmp_path: Path) -> None:
    with fake_server({**OLD, "/api/admin/version": theirs}) as server:
        process = script(tmp_path, RUN.format(url=server.url))
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"the Prefect server at {server.url}/api failed (" in output
    assert why in output
    assert "going on without it" in output


@pytest.mark.slow
def test_a_run_and_a_check_tell_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with fake_server(OLD) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
        with pytest.raises(MlflowError):
            check_mlflow()
        assert told("MLflow", server.url, "3.1.0") in capsys.readouterr().out
        by_mlflow, (by_prefect,) = check._mlflow(), check._prefect()
    assert by_mlflow.level == "error"
    assert by_mlflow.remedy.startswith(told("MLflow", server.url, "3.1.0"))
    assert by_prefect.level == "warning"
    assert by_prefect.message.startswith(told("Prefect", f"{server.url}/api", "3.4.0"))


def settings_of_a_server(**concurrency: str) -> dict[str, Any]:
    """What a Prefect server that was told nothing else says of its settings."""
    values: dict[str, Any] = get_current_settings().model_dump(mode="json")
    values["server"]["concurrency"] |= concurrency
    return values


IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"


@pytest.mark.parametrize(
    ("settings", "warned"),
    [(settings_of_a_server(), 1), ({}, 1), (settings_of_a_server(lease_storage=IN_FILES), 0)],
    ids=["as Prefect comes", "of a server that says nothing", "in files"],
)
def test_leases_in_memory_are_warned_of(
    settings: dict[str, Any], warned: int, recwarn: pytest.WarningsRecorder
) -> None:
    with (
        fake_server({"/api/admin/settings": settings}) as server,
        temporary_settings({PREFECT_API_URL: f"{server.url}/api"}),
        get_client(sync_client=True) as client,
    ):
        _warn_of_leases(client)
    ours = [str(one.message) for one in recwarn.list if one.category is DiffctlWarning]
    assert len(ours) == warned
    assert all(f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={IN_FILES}" in words for words in ours)


def test_a_server_of_the_projects_keeps_them_in_files_and_prefects_own_does_not() -> None:
    assert settings_of_a_server()["server"]["concurrency"]["lease_storage"] == IN_MEMORY
    assert LEASES == IN_FILES
