"""MLflow that is absent, hangs, fails or wants a password: one sentence each, within seconds."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffusion.system.errors import UsageError
from tests.helpers.mlflow_server import free_port
from tracking import connectivity
from tracking.connectivity import MlflowError, MlflowUnavailable, check_reachable, redact_uri
from tracking.runs.run_lookup import find_run
from tracking.store import mlflow_client


@pytest.fixture(autouse=True)
def no_answers_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "_answered", set())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@contextmanager
def server(status: int, health: int = 200) -> Iterator[str]:
    """Serve one status for everything but /health; yield the address with a password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health if self.path == "/health" else status)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.\nPlease see https://mlflow.org")

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://me:secret@127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.mark.parametrize(
    ("status", "health", "exit_code"),
    [(401, 200, 2), (403, 200, 2), (503, 200, 75), (429, 200, 75), (200, 502, 75)],
)
def test_status_decides_the_exit_code(status: int, health: int, exit_code: int) -> None:
    with server(status, health) as uri, pytest.raises(MlflowError, match=r"^[^\n]*$") as caught:
        find_run("abc", uri)
    assert caught.value.exit_code == exit_code
    assert "secret" not in str(caught.value)
    assert redact_uri(uri) in str(caught.value)


def test_any_http_answer_counts_as_reachable() -> None:
    with server(404, 404) as uri:
        check_reachable(uri)
    check_reachable("sqlite:////nowhere/b@c.db")


def test_a_missing_run_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run 'abc'"):
        find_run("abc", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []


def test_hung_server_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MlflowUnavailable, match=r"0\.1 s"):
            check_reachable(uri)


def test_lost_connection_is_detected() -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    connectivity._answered.add(uri)
    with pytest.raises(MlflowUnavailable) as caught, mlflow_client(uri) as client:
        client.get_experiment_by_name("x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:port",
        "http://",
        "postgresql+psycopg://me:secret@host:port/db",
        "postgre://me:secret@host/db",
        "mssql+pyodbc://me:secret@host/db",
    ],
)
def test_invalid_address_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI") as caught:
        check_reachable(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_absent_and_hung_databases_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(MlflowUnavailable, match="Connection refused") as caught:
        check_reachable(f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/db?password=secret")
    assert caught.value.exit_code == 75
    assert "secret" not in str(caught.value)
    monkeypatch.setattr(connectivity, "TIMEOUT_SECONDS", 2)  # the minimum of libpq
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(MlflowUnavailable, match="timeout"),
    ):
        check_reachable(f"postgresql+psycopg://me:secret@127.0.0.1:{listener.getsockname()[1]}/db")
