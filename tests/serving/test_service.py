"""Changes of the service: queued, drained and cancelled requests, and another champion."""

import asyncio
import base64
import json
import threading
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from diffusion.images.pictures import png_bytes
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.errors import UsageError
from serving.app import create_app
from serving.edits import prepare_edit
from serving.service import Service
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE, assert_offline, events_of, pixels
from tests.helpers.server_process import gated, published, service_of, small_model
from tests.helpers.waiting import wait_until


@contextmanager
def pending(client, gate, body):
    """A request in a thread, held at the gate for the block; its answers after it."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json=body)))
    thread.start()
    assert gate.reached.wait(30)
    yield answers
    gate.open.set()
    thread.join()


def test_a_full_queue_is_429_with_retry_after(model):
    service = service_of(published(model), queue=3)
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        with pending(client, gate, {"num": 2}) as answers:
            refused = client.post("/v1/images", json={"num": 2})
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "5"
            never = client.post("/v1/images", json={"num": 4})
            assert (never.status_code, "ask for 3 at most" in never.json()["detail"]) == (422, True)
        assert answers[0].status_code == 200
        assert client.post("/v1/images", json={"num": 2}).status_code == 200


@pytest.mark.parametrize("error", [RuntimeError("a fault"), UsageError("steps 4: too few")])
def test_a_failure_ends_the_events_with_an_error(model, error):
    service = service_of(published(model))

    def fail(*arguments: object) -> None:
        raise error

    published_model, loaded, guides = service._first
    service._first = published_model, loaded._replace(network=fail), guides
    with TestClient(create_app(service), HERE, raise_server_exceptions=False) as client:
        ((name, values),) = events_of(client.post("/v1/images/events", json={}).text)
        sentence = str(error) if isinstance(error, UsageError) else "the server failed: see its log"
        assert (name, values) == ("error", {"detail": sentence})
        answer = client.post("/v1/images", json={})
        assert answer.json() == {"detail": sentence}
        assert answer.status_code == (422 if isinstance(error, UsageError) else 500)


def test_draining_finishes_running_requests_and_refuses_new_ones(model):
    service = service_of(published(model))
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        with pending(client, gate, {}) as answers:
            assert client.get("/readyz").status_code == 200
            drained = client.portal.start_task_soon(service.drain)
            wait_until(lambda: service.draining)
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
            assert client.post("/v1/images", json={}).status_code == 503
            assert not drained.done()
        drained.result(30)
        assert answers[0].status_code == 200


def test_a_request_that_outlasts_the_drain_gets_503(model):
    service = service_of(published(model), drain=0)
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client, pending(client, gate, {"steps": 50}) as answers:
        client.portal.call(service.drain)
        stopped = client.portal.start_task_soon(service.stop)
        wait_until(lambda: not service.current.loop.is_running)
        gate.open.set()
        stopped.result(30)
    assert answers[0].status_code == 503


EDIT = {"image": base64.b64encode(png_bytes(random_images(0, 1, 8, 1)[0])).decode(), "strength": 1}


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/events", "/v1/edits", "/v1/edits/events"])
def test_a_disconnected_client_cancels_its_request(model, path):
    service = service_of(published(model))
    gate = gated(service)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

    async def leave() -> None:
        app, body = create_app(service), {"num": 5, "steps": 50, **(EDIT if "edits" in path else {})}
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await asyncio.to_thread(gate.reached.wait, 30)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            """Ignore the response."""

        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            assert service.current.loop.engine.held == 0
            assert service.active == 0
            gate.open.set()
        assert service.metrics.gone._value.get() == 1

    asyncio.run(leave())


class Moving:
    """A source whose model changes."""

    def __init__(self, first, second) -> None:
        self.now, self.second, self.error = first, second, None

    def fetch(self):
        return self.now

    def has_changed(self, since) -> bool:
        if self.error:
            raise self.error
        return since.version != self.now.version


def test_a_new_champion_serves_while_the_old_one_finishes_its_requests(model, tmp_path):
    other = small_model(tmp_path / "other.safetensors", seed=1)
    source = Moving(published(model, 1), published(other, 2))
    reports: list[str] = []
    service = service_of(source, poll=0.1)
    service.report = reports.append
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        with pending(client, gate, {"num": 2}) as answers:
            source.now = source.second
            wait_until(lambda: service.current.ref.version == 2)
            listed = client.get("/v1/models").json()["models"]
            states = [(card["model"]["version"], card["state"]) for card in listed]
            assert states == [(2, "serving"), (1, "draining")]
            new = client.post("/v1/images", json={"num": 2})
            assert new.headers["x-model-version"] == "2"
            assert_offline(pixels(new.json()), other, SampleSettings(steps=8, eta=1.0), [0, 1])
            assert not answers
        wait_until(lambda: service._old is None)
    assert answers[0].headers.get_list("x-model-version") == ["1"]
    assert_offline(pixels(answers[0].json()), model, SampleSettings(steps=8, eta=1.0), [0, 1])
    assert reports == ["digits version 2 serves now"]


def test_an_edit_that_is_prepared_while_the_champion_changes_is_by_the_new_one(model, tmp_path, monkeypatch):
    other = small_model(tmp_path / "other.safetensors", seed=1)
    source = Moving(published(model, 1), published(other, 2))
    service = service_of(source, poll=0.1)

    def prepare(*arguments):
        source.now = source.second
        wait_until(lambda: service.current.ref.version == 2 and service._old is None)
        return prepare_edit(*arguments)

    monkeypatch.setattr("serving.edits.prepare_edit", prepare)
    with TestClient(create_app(service), HERE) as client:
        answer = client.post("/v1/edits", json=EDIT)
        assert (answer.status_code, answer.headers["x-model-version"]) == (200, "2")


def test_a_champion_that_fails_to_load_leaves_the_old_one_serving(model, tmp_path):
    source = Moving(published(model, 1), None)
    reports: list[str] = []
    service: Service = service_of(source, poll=0.1)
    service.report = reports.append
    damaged = tmp_path / "damaged.safetensors"
    whole = model.read_bytes()
    damaged.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])

    def failed(count: int) -> bool:
        return service.metrics.reloads.labels("failed")._value.get() >= count

    with TestClient(create_app(service), HERE) as client:
        source.error = ConnectionError("MLflow is away")
        wait_until(lambda: failed(2))
        source.error, source.now = None, published(model, 2)._replace(files=NetworkFiles(damaged))
        wait_until(lambda: failed(4) and len(reports) == 2)
        assert client.post("/v1/images", json={}).headers["x-model-version"] == "1"
    assert reports[0] == "the model stays as it is: ConnectionError: MLflow is away"
    assert "damaged: its weights are not those" in reports[1]
