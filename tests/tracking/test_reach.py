"""A server that is not there, hangs, fails or wants a password: each in one sentence, and soon."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffusion.system.errors import UsageError
from tests.helpers.mlflow_server import free_port
from tracking import reach
from tracking.lookup import find_run
from tracking.reach import MlflowAway, MlflowRefused, knock
from tracking.store import connect, failures


@pytest.fixture(autouse=True)
def nobody_answered_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_answered", set())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@contextmanager
def server(status: int, health: int = 200) -> Iterator[str]:
    """A server that gives one status for everything but its health; its address with a password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health if self.path == "/health" else status)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.\nPlease see https://mlflow.org")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://me:secret@127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def public_part(uri: str) -> str:
    return uri.replace("me:secret@", "")


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_password_says_so(status: int) -> None:
    with server(status) as uri, pytest.raises(MlflowRefused) as caught:
        find_run("abc", uri)
    assert str(caught.value).startswith(
        f"MLflow at {public_part(uri)} does not let us in: set MLFLOW_TRACKING_"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("status", "health"), [(503, 200), (429, 200), (200, 502)])
def test_a_server_that_cannot_now_may_later(status: int, health: int) -> None:
    with server(status, health) as uri, pytest.raises(MlflowAway, match="does not answer at http") as caught:
        find_run("abc", uri)
    assert caught.value.exit_code == 75
    assert "secret" not in str(caught.value)


def test_any_answer_is_one() -> None:
    with server(404, 404) as uri:
        knock(uri)


def test_a_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "KNOCK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MlflowAway, match=r"not within 0\.2 s"):
            knock(uri)


def test_a_server_that_goes_away_in_between_is_away() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    reach._answered.add(uri)
    with pytest.raises(MlflowAway, match="the connection broke"), failures(uri):
        connect(uri).get_experiment_by_name("x")


@pytest.mark.parametrize("uri", ["http://host:port", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        knock(uri)


def test_what_is_no_server_is_not_asked() -> None:
    knock("sqlite:////nowhere/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql+psycopg://me:secret@host:port/db", "is no address of a database"),
        ("postgre://me:secret@host/db", "is no address of a database"),
        ("postgresql+none://me:secret@host/db", "is no address of a database"),
        ("mssql+pyodbc://me:secret@host/db", "needs pyodbc, which is not installed"),
    ],
)
def test_what_is_no_database_is_refused(uri: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        knock(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_database_that_is_not_there_or_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(MlflowAway, match="Connection refused") as caught:
        knock(f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/db?password=secret")
    assert caught.value.exit_code == 75
    assert "secret" not in str(caught.value)
    monkeypatch.setattr(reach, "KNOCK_SECONDS", 2)  # the least that libpq takes
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(MlflowAway, match="timeout"):
        knock(f"postgresql+psycopg://me:secret@127.0.0.1:{listener.getsockname()[1]}/db")
