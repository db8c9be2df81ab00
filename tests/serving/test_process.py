"""`diffctl serve` as a process: errors, load, limits, shutdown."""

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from diffusion.layout import MODEL
from tests.conftest import command, run_python
from tests.helpers.invoke import assert_refused
from tests.helpers.server_process import ServerProcess, small_model
from tests.helpers.waiting import wait_until


@pytest.fixture
def server(project) -> Iterator[ServerProcess]:
    small_model(project / MODEL)
    with ServerProcess(project) as server:
        yield server


def test_a_public_address_without_a_token_is_refused(project, invoke):
    assert_refused(invoke("serve", "--host", "0.0.0.0"), "--token-file")


def disconnect_while_images_are_made(server: ServerProcess) -> None:
    body = json.dumps({"num": 64, "steps": 100})
    head = "POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: server.metric("diffctl_images_held ") > 0)
    wait_until(lambda: server.metric("diffctl_images_held ") == 0)
    wait_until(lambda: server.metric("diffctl_requests_gone_total ") == 1)


@pytest.mark.slow
def test_disconnects_free_images_and_sigterm_under_load_loses_no_request(server):
    assert server.startup_line == f"model.safetensors: {server.url}/v1/images (Ctrl-C ends it)\n"
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    disconnect_while_images_are_made(server)

    def post(number: int) -> int:
        body = {"num": number % 4 + 1, "steps": 5 + number % 3 * 30, "seed": number}
        return httpx.post(f"{server.url}/v1/images", json=body, timeout=60).status_code

    def have_all_arrived() -> bool:
        answered = server.metric('diffctl_requests_total{path="/v1/images",status="200"}')
        return answered + server.metric("diffctl_requests_active ") > 24  # with the one for metrics

    with ThreadPoolExecutor(24) as clients:
        posts = [clients.submit(post, number) for number in range(24)]
        wait_until(have_all_arrived)
        server.process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in posts]
    assert server.process.wait(60) == 0
    assert set(answers) <= {200, 503}
    assert answers.count(200) >= 8
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_a_token_allows_a_public_address_and_idle_connections_end_no_server(project):
    small_model(project / MODEL)
    (project / "token").write_text("0123456789abcdefghij")
    limited = ["bash", "-c", 'ulimit -n 64 && exec "$0" "$@"', *command()]
    with ServerProcess(project, "--host", "0.0.0.0", "--token-file", "token", program=limited) as server:
        with contextlib.ExitStack() as idle:
            for _ in range(100):
                idle.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wait_until(lambda: server.log.read_text() != "")
        url = f"http://127.0.0.1:{server.port}/v1/images"
        assert httpx.post(url, json={"steps": 2}, timeout=60).status_code == 401
        known = {"Authorization": "Bearer 0123456789abcdefghij"}
        assert httpx.post(url, json={"steps": 2}, headers=known).status_code == 200
        assert server.stop() == 0
        assert "ulimit -n" in server.log.read_text()
        assert len(server.log.read_text().splitlines()) == 1


@pytest.mark.slow
def test_every_response_conforms_to_the_openapi_schema(project):
    small_model(project / MODEL)
    with ServerProcess(project, "--max-steps", "20") as server:
        tool = ("-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--url", server.url)
        checks = "content_type_conformance,response_headers_conformance,response_schema_conformance"
        checks += ",not_a_server_error,status_code_conformance"
        cases = ("--seed", "0", "--max-examples", "20", "--phases", "coverage,fuzzing")
        done = run_python(project, *tool, "--checks", checks, *cases, "--warnings", "off", "--no-color")
        sent = re.search(r"(\d+) generated", done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sent is not None
        assert int(sent[1]) > 100
        assert server.stop() == 0
        assert server.log.read_text() == ""
