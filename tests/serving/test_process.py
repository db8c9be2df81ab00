"""`diffctl serve` as a process: what it says, whom it serves, and how it ends."""

import json
import random
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from diffusion.layout import MODEL
from tests.conftest import diffctl, write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.served import ServerProcess, small_model, trained
from tests.helpers.waiting import wait_until
from tracking.promotion import Hand, promote_version
from tracking.registry import register
from tracking.store import connect

NAME = "diffctl-digits"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def server(here) -> Iterator[ServerProcess]:
    small_model(here / MODEL)
    server = ServerProcess(here)
    try:
        yield server
    finally:
        server.kill()


def metric(server: ServerProcess, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--model", "missing.safetensors"], 2, "missing.safetensors"),
        (["--host", "0.0.0.0"], 2, "open to other machines: give a --token-file"),
        (["--token-file", "missing"], 2, "no token file at missing"),
        (["--champion", "--run-id", "x"], 2, "exclude each other"),
        (["--champion"], 2, "diffctl-digits has no champion: `diffctl run` registers a model"),
        (["--rows", "1"], 2, "--rows"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_served_is_a_sentence(here, arguments, code, why):
    write_params(here)
    done = diffctl(here, "serve", *arguments)
    assert done.returncode == code
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_no_model_is_a_sentence(here):
    model = small_model(here / MODEL)
    whole = model.read_bytes()
    for data in (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b"\x80\x04]q\x00."):  # edited; a pickle
        model.write_bytes(data)
        done = diffctl(here, "serve", "--port", "0")
        assert done.returncode == 1
        assert done.stderr.startswith("diffctl: ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_port_that_is_taken_is_a_sentence(server, here):
    done = diffctl(here, "serve", "--port", str(server.port))
    assert done.returncode == 1
    assert done.stderr == (
        f"diffctl: 127.0.0.1 port {server.port} cannot be had (Address already in use): "
        "give another one with --port\n"
    )


@pytest.mark.slow
def test_it_says_where_it_is_and_ends_quietly(server):
    assert server.said == f"unet.safetensors: {server.url}/v1/images (Ctrl-C ends it)\n"
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    assert server.stop() == 0
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_many_clients_are_served_some_leave_and_sigterm_loses_none(server):
    draw, answers, lost = random.Random(0), [], []
    begun = threading.Semaphore(0)

    def ask(number: int, leaves: bool) -> None:
        asked = {"num": number % 4 + 1, "steps": 5 + number % 3 * 30, "seed": number}
        begun.release()
        try:
            timeout = 0.05 if leaves else 60
            answers.append(httpx.post(f"{server.url}/v1/images", json=asked, timeout=timeout).status_code)
        except httpx.HTTPError as error:
            if not leaves:
                lost.append(repr(error))

    clients = [threading.Thread(target=ask, args=(i, draw.random() < 0.3)) for i in range(24)]
    for client in clients:
        client.start()
    for _ in clients:
        begun.acquire()
    wait_until(lambda: metric(server, 'diffctl_requests_total{path="/v1/images"') >= 8)
    server.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join()
    assert server.process.wait(60) == 0
    assert not lost
    assert set(answers) <= {200, 503}
    assert answers.count(200) >= 8
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_who_leaves_leaves_nothing_behind(server):
    body = json.dumps({"num": 64, "steps": 100}).encode()
    head = "POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: metric(server, "diffctl_images_held ") > 0)
        wait_until(lambda: metric(server, "diffctl_images_held ") == 0)
    wait_until(lambda: metric(server, "diffctl_requests_gone_total ") == 5)


@pytest.mark.slow
def test_a_thousand_connections_and_slow_clients_keep_nobody_out_for_long(server):
    with ExitStack() as stack:
        for number in range(1000):
            client = stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
            if number % 2:
                client.sendall(b"POST /v1/images HTTP/1.1\r\nHost: 127")  # and never the rest
        wait_until(lambda: _answers(server), 60)
        assert httpx.post(f"{server.url}/v1/images", json={"steps": 2}, timeout=60).status_code == 200


def _answers(server: ServerProcess) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_the_champion_changes_and_no_request_is_dropped(here):
    write_params(here)
    empty_database(here / "mlflow.db")
    sha256 = {1: trained(1, 0.1)}
    assert register().promoted
    sha256[2] = trained(2, 0.2)
    assert not register().promoted
    server = ServerProcess(here, "--champion", "--poll", "0.2")
    answers: list[tuple[int, str, str]] = []
    over = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                asked = {"num": number % 4 + 1, "steps": 4 + number * 3}
                answer = client.post(f"{server.url}/v1/images", json=asked)
                headers = answer.headers
                answers.append((answer.status_code, headers["x-model-version"], headers["x-model-sha256"]))
                assert answer.json()["model"]["sha256"] == headers["x-model-sha256"]

    try:
        clients = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for client in clients:
            client.start()
        wait_until(lambda: len(answers) >= 20)
        assert promote_version(connect(), NAME, 2, Hand(force=True, note="the other one")).promoted
        wait_until(lambda: any(version == "2" for _, version, _ in answers))
        seen = len(answers)
        wait_until(lambda: len(answers) >= seen + 20)
        over.set()
        for client in clients:
            client.join()
        assert metric(server, "diffctl_images_held ") == 0
        assert server.stop() == 0
        assert server.log.read_text() == f"diffctl: {NAME} version 2 serves now\n"
    finally:
        over.set()
        server.kill()
    assert {status for status, _, _ in answers} == {200}
    assert {(version, of) for _, version, of in answers} == {("1", sha256[1]), ("2", sha256[2])}


@pytest.mark.slow
def test_a_token_opens_it_to_other_machines(here):
    small_model(here / MODEL)
    (here / "token").write_text("0123456789abcdefghij")
    server = ServerProcess(here, "--host", "0.0.0.0", "--token-file", "token")
    try:
        url = f"http://127.0.0.1:{server.port}/v1/images"
        assert httpx.post(url, json={"steps": 2}).status_code == 401
        known = {"Authorization": "Bearer 0123456789abcdefghij"}
        assert httpx.post(url, json={"steps": 2}, headers=known).status_code == 200
        assert server.stop() == 0
    finally:
        server.kill()
