"""`diffctl serve` as a process: errors, load, champion changes, shutdown."""

import contextlib
import json
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from diffusion.layout import MODEL
from tests.conftest import command, write_params
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.server_process import ServerProcess, small_model, trained
from tests.helpers.waiting import wait_until
from tracking.registry.model_registry import promote, register
from tracking.registry.promotion import Override

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
    ("arguments", "word"),
    [
        (["--model", "missing.safetensors"], "missing.safetensors"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--champion"], "diffctl-digits has no champion"),
    ],
)
def test_a_wrong_option_is_one_sentence(here, invoke, arguments, word):
    write_params(here)
    empty_database(here / "mlflow.db")
    assert_refused(invoke("serve", *arguments), word)


def test_a_damaged_model_file_is_one_sentence(here, invoke):
    model = small_model(here / MODEL)
    whole = model.read_bytes()
    for data in (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b"\x80\x04]q\x00."):  # edited; a pickle
        model.write_bytes(data)
        assert_refused(invoke("serve", "--port", "0"), code=1)


@pytest.mark.slow
def test_it_prints_its_address_and_ends_without_output(server):
    assert server.startup_line == f"model.safetensors: {server.url}/v1/images (Ctrl-C ends it)\n"
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    assert server.stop() == 0
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_sigterm_under_load_loses_no_request(server):
    draw, answers, lost = random.Random(0), [], []
    begun = threading.Semaphore(0)

    def post(number: int, leaves: bool) -> None:
        body = {"num": number % 4 + 1, "steps": 5 + number % 3 * 30, "seed": number}
        begun.release()
        try:
            timeout = 0.05 if leaves else 60
            answers.append(httpx.post(f"{server.url}/v1/images", json=body, timeout=timeout).status_code)
        except httpx.HTTPError as error:
            if not leaves:
                lost.append(repr(error))

    clients = [threading.Thread(target=post, args=(i, draw.random() < 0.3)) for i in range(24)]
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
def test_disconnected_clients_free_their_images(server):
    body = json.dumps({"num": 64, "steps": 100}).encode()
    head = "POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: metric(server, "diffctl_images_held ") > 0)
        wait_until(lambda: metric(server, "diffctl_images_held ") == 0)
    wait_until(lambda: metric(server, "diffctl_requests_gone_total ") == 5)


@pytest.mark.slow
def test_without_free_file_descriptors_it_logs_one_line_and_recovers(here):
    small_model(here / MODEL)
    limited = ["bash", "-c", 'ulimit -n 64 && exec "$0" "$@"', *command()]
    server = ServerProcess(here, program=limited)
    try:
        with contextlib.ExitStack() as idle:
            for _ in range(100):
                idle.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wait_until(lambda: server.log.read_text() != "")
        assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
        assert server.stop() == 0
        assert "ulimit -n" in server.log.read_text()
        assert len(server.log.read_text().splitlines()) == 1
    finally:
        server.kill()


@pytest.mark.slow
def test_a_new_champion_drops_no_request(here):
    write_params(here)
    empty_database(here / "mlflow.db")
    sha256 = {1: trained(1, 0.1)}
    assert register().promoted
    sha256[2] = trained(2, 0.2)
    assert not register().promoted
    server = ServerProcess(here, "--champion", "--poll", "0.2")
    answers: list[tuple[int, str, str]] = []
    over = threading.Event()

    def post(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                body = {"num": number % 4 + 1, "steps": 4 + number * 3}
                answer = client.post(f"{server.url}/v1/images", json=body)
                headers = answer.headers
                answers.append((answer.status_code, headers["x-model-version"], headers["x-model-sha256"]))
                assert answer.json()["model"]["sha256"] == headers["x-model-sha256"]

    try:
        clients = [threading.Thread(target=post, args=(i,)) for i in range(6)]
        for client in clients:
            client.start()
        wait_until(lambda: len(answers) >= 20)
        assert promote(NAME, 2, Override(force=True, note="the other one")).promoted
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
def test_a_token_allows_a_public_address(here):
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
