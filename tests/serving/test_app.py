"""What is asked over HTTP, and what comes: the offline images, or a sentence."""

import asyncio
import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from diffusion.images.pictures import contact_print, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.model.model_file import load_model
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.asked import class_condition, mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.questions import evaluations
from serving.app import create_app
from serving.service import Service
from tests.helpers.served import CPU, gated, published, scores_of, service_of, small_model
from tests.helpers.waiting import wait_until

HERE = "http://127.0.0.1"
TOKEN = "a-token-of-the-test-0123456789"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def service(model):
    return service_of(published(model))


@pytest.fixture
def client(service):
    with TestClient(create_app(service), HERE) as client:
        yield client


def pixels(answer: dict) -> np.ndarray:
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"]]
    return np.stack([np.asarray(image, dtype=int) for image in images])


def offline(model, settings: SampleSettings, indices, klass: str | None = None) -> np.ndarray:
    loaded = load_model(model)
    if klass is None:
        condition = mixed_condition(loaded.artefact, settings, indices)
    else:
        condition = class_condition(loaded.artefact, klass, len(indices))
    return to_nhwc(generate(loaded, settings, indices, condition, CPU))


ASKED = [
    ({}, SampleSettings(steps=8, eta=1.0), [0], None),
    ({"num": 3, "seed": 5, "steps": 3}, SampleSettings(steps=3, eta=1.0, seed=5), [0, 1, 2], None),
    ({"indices": [7, 2], "eta": 0, "class": 4}, SampleSettings(steps=8), [7, 2], "4"),
    ({"budget": 5, "class": "class2", "seed": 1}, SampleSettings(steps=4, seed=1), [0], "class2"),
    ({"sampler": "dpm-solver++", "steps": 4, "guidance": 1.5, "num": 2},
     SampleSettings(sampler="dpm-solver++", steps=4, guidance=1.5), [0, 1], None),
    ({"steps": 6, "guidance": 2, "guidance_interval": [0.3, 4], "num": 2},
     SampleSettings(steps=6, eta=1.0, guidance=2.0, guidance_interval=(0.3, 4.0)), [0, 1], None),
    ({"steps": 6, "guidance": 2, "guidance_interval": "0.3:4"},
     SampleSettings(steps=6, eta=1.0, guidance=2.0, guidance_interval=(0.3, 4.0)), [0], None),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "settings", "indices", "klass"), ASKED)
def test_the_images_are_the_offline_ones(client, model, asked, settings, indices, klass):
    answer = client.post("/v1/images", json=asked)
    assert answer.status_code == 200, answer.text
    values = answer.json()
    assert values["indices"] == indices
    assert SampleSettings(**values["settings"]) == settings
    if klass is not None:
        assert values["labels"] == [int(klass.removeprefix("class"))] * len(indices)
    expected = offline(model, settings, indices, klass)[..., 0].astype(int)
    assert np.abs(pixels(values) - expected).max() <= 1


LIMITED = {"guidance": 2.0, "guidance_interval": (0.3, 4.0)}


def test_an_answer_tells_the_evaluations_of_its_interval(client, model):
    chosen = SampleSettings(steps=6, **LIMITED)
    asked = {"steps": 6, "eta": 0, **LIMITED}
    process = load_model(model).artefact.process
    made = client.post("/v1/images", json=asked).json()
    assert made["evaluations"] == evaluations(chosen, process)
    assert 6 < made["evaluations"] < 12
    assert made["settings"]["guidance_interval"] == [0.3, 4.0]
    for wrong, said in (
        ({"guidance_interval": [0.3, 4]}, "guidance_interval does nothing without guidance"),
        ({**LIMITED, "guidance_interval": [4, 0.3]}, "the low end must be below the high one"),
        ({**LIMITED, "guidance_interval": [-1, 4]}, "greater than or equal to 0"),
        ({**LIMITED, "guidance_interval": [1]}, "Field required"),
        ({"guidance_interval": [0.3, 4], "budget": 5}, "budget takes guidance_interval from the model"),
    ):
        refused = client.post("/v1/images", json={"steps": 6, **wrong} if "budget" not in wrong else wrong)
        assert (refused.status_code, said in refused.json()["detail"]) == (422, True), refused.text


def test_the_usual_interval_holds_unless_another_or_none_is_asked_for(model):
    scores, usual = scores_of(model), {"guidance": 2.0, "guidance_interval": "0.3:4"}
    cells = {
        name: cell.model_copy(update={"card": {**cell.card, **usual}}) for name, cell in scores.cells.items()
    }
    scored = published(model)._replace(scores=scores.model_copy(update={"cells": cells}))
    with TestClient(create_app(service_of(scored)), HERE) as client:
        for asked, interval in (
            ({}, [0.3, 4.0]),
            ({"guidance": 1}, [0.3, 4.0]),
            ({"guidance_interval": [0, 1]}, [0.0, 1.0]),
            ({"guidance_interval": None}, None),
            ({"guidance": 0}, None),
        ):
            answer = client.post("/v1/images", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["settings"]["guidance_interval"] == interval


def test_without_scores_fifty_steps_of_ddim_are_usual(model):
    with TestClient(create_app(service_of(published(model, None, scored=False))), HERE) as client:
        answer = client.post("/v1/images", json={})
        assert SampleSettings(**answer.json()["settings"]) == SampleSettings()
        assert answer.json()["model"]["version"] is None
        assert answer.headers["x-model-version"] == "none"
        refused = client.post("/v1/images", json={"budget": 10})
        assert refused.json() == {"detail": "digits has no scores to choose by: give steps instead of budget"}


def test_one_picture_or_arrays(client, model):
    expected = offline(model, SampleSettings(steps=8, eta=1.0), range(4))
    grid = client.post("/v1/images", json={"num": 4, "format": "grid"})
    assert grid.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(grid.content)), dtype=int)
    wanted = np.asarray(Image.open(io.BytesIO(png_bytes(contact_print(expected)))), dtype=int)
    assert np.abs(shown - wanted).max() <= 1
    arrays = client.post("/v1/images", json={"num": 4, "format": "npz"})
    assert arrays.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(arrays.content)) as file:
        assert np.abs(file["arr_0"].astype(int) - expected).max() <= 1
        assert file["arr_1"].tolist() == [0, 1, 2, 3]


def events_of(text: str) -> list[tuple[str, dict]]:
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_events_show_the_images_as_they_come(client):
    asked = {"num": 3, "steps": 7, "eta": 0}
    events = events_of(client.post("/v1/images/events", json={**asked, "every": 3}).text)
    assert [(name, values.get("step")) for name, values in events] == [
        ("step", 3), ("step", 6), ("images", None),
    ]  # fmt: skip
    assert all(pixels(values).shape == (3, 8, 8) for _, values in events)
    assert events[0][1]["indices"] == [0, 1, 2]
    whole = client.post("/v1/images", json=asked).json()
    assert events[-1][1] == whole


REFUSED = [
    ({"num": 0}, "num: Input should be greater than or equal to 1 (got 0)"),
    ({"num": True}, "num: Input should be a valid integer (got True)"),
    ({"nums": 1}, "nums: unknown key"),
    ({"num": 65}, "65 images are too many at once: ask for 64 at most"),
    ({"indices": []}, "indices: List should have at least 1 item"),
    ({"indices": [-1]}, "indices: Input should be greater than or equal to 0 (got -1)"),
    ({"steps": 1001}, "1001 steps are too many: ask for 1000 at most"),
    ({"steps": 101}, "101 sampling steps do not fit: give 1 to 100, the model's timesteps"),
    ({"budget": 2}, "no cell of the sweep takes 2 network evaluations or fewer"),
    ({"budget": 9, "steps": 4}, "budget takes steps from the model's sweep: give one of the two"),
    ({"eta": 50}, "eta 50.0 does not fit 8 steps"),
    ({"sampler": "euler"}, "sampler: allowed are ddim, dpm-solver++ (got 'euler')"),
    ({"sampler": "dpm-solver++", "eta": 1}, "sampler dpm-solver++ is deterministic: eta must be 0"),
    ({"sampler_options": {"order": 3}}, "sampler_options of ddim: order: unknown key"),
    ({"class": "cat"}, "there is no class 'cat': give 0 to 9, or one of class0"),
    ({"class": 10}, "there is no class '10'"),
    ({"seed": 2**63}, "seed: Input should be less than or equal to"),
    ({"format": "gif"}, "format: Input should be 'json', 'grid' or 'npz' (got 'gif')"),
]


@pytest.mark.parametrize(("asked", "why"), REFUSED)
def test_a_request_that_does_not_fit_is_told_why(client, asked, why):
    answer = client.post("/v1/images", json=asked)
    assert answer.status_code == 422
    assert why in answer.json()["detail"]


BROKEN = [
    (b"", 422), (b"{", 422), (b"null", 422), (b"[" * 60_000, 400), (b'{"eta": NaN}', 422),
    (b'{"guidance": 1e999}', 422), (b"\xff\xfe{}", 422), (b'{"class": "\\ud800"}', 422),
    (b'{"\\ud800": 1}', 422), (b'{"seed": ' + b"9" * 5000 + b"}", 422), (b"[" + b" " * 70_000 + b"]", 413),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BROKEN)
def test_a_body_that_is_none_is_refused_in_a_sentence(client, body, status):
    answer = client.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (status, 400)
    assert isinstance(answer.json()["detail"], str)
    assert "Traceback" not in answer.text


def test_a_form_that_a_foreign_page_could_send_is_no_request(client):
    answer = client.post("/v1/images", content=b'{"num": 1}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


def test_numbers_that_are_none_are_told(model):
    service = service_of(published(model))
    _, loaded = service._first
    for weight in loaded.network.parameters():
        weight.fill_(float("nan"))
    with TestClient(create_app(service), HERE) as client:
        answer = client.post("/v1/images", json={"num": 2})
        assert answer.status_code == 422
        assert "image 0 is NaN or infinite from step 1 on" in answer.json()["detail"]
        (event,) = events_of(client.post("/v1/images/events", json={}).text)
        assert event[0] == "error"
        assert "image 0 is NaN" in event[1]["detail"]


def test_a_fault_of_the_server_shows_nothing_of_it(model):
    service = service_of(published(model))

    def broken(x, t, labels):
        raise RuntimeError("/secret/path")

    first, loaded = service._first
    service._first = first, loaded._replace(network=broken)
    with TestClient(create_app(service), HERE, raise_server_exceptions=False) as client:
        answer = client.post("/v1/images", json={})
        assert answer.status_code == 500
        assert answer.json() == {"detail": "the server failed: see its log"}
        assert answer.headers["x-model-version"] == "3"
        assert client.get("/readyz").status_code == 200


def test_every_answer_names_its_model(client, service):
    paths = {
        "/v1/models": "GET",
        "/healthz": "GET",
        "/nothing": "GET",
        "/metrics": "GET",
        "/v1/images": "PUT",
    }
    for path, method in [*paths.items(), ("/v1/images", "POST")]:
        headers = client.request(method, path).headers
        assert headers["x-model-name"] == "digits"
        assert headers["x-model-version"] == "3"
        assert headers["x-model-sha256"] == service.name.sha256


def test_models_have_their_cards(client, service):
    (listed,) = client.get("/v1/models").json()["models"]
    assert listed["model"] == {"name": "digits", "version": 3, "sha256": service.name.sha256}
    assert listed["state"] == "serving"
    assert listed["card"]["data"]["name"] == "test"
    assert listed["usual"]["steps"] == 8
    assert [(cell["cell"], cell["evaluations"]) for cell in listed["front"]] == [
        ("steps4-eta0", 4), ("steps8-eta1", 8),
    ]  # fmt: skip
    assert listed["limits"] == {"images": 64, "steps": 1000}


def test_it_is_counted(client):
    client.post("/v1/images", json={"num": 3, "steps": 2})
    client.post("/v1/images", json={"num": 0})
    lines = client.get("/metrics").text.splitlines()
    assert 'diffctl_requests_total{path="/v1/images",status="200"} 1.0' in lines
    assert 'diffctl_requests_total{path="/v1/images",status="422"} 1.0' in lines
    assert "diffctl_images_total 3.0" in lines
    assert "diffctl_pass_rows_count 2.0" in lines
    assert "diffctl_images_held 0.0" in lines
    assert "diffctl_requests_active 1.0" in lines  # this one
    assert any(line.startswith('diffctl_model_info{name="digits"') for line in lines)


def test_beyond_the_queue_it_says_when_to_come_again(model):
    service = service_of(published(model), queue=3)
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json={"num": 2})))
        first.start()
        assert gate.reached.wait(30)
        refused = client.post("/v1/images", json={"num": 2})
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "2 images are being made" in refused.json()["detail"]
        gate.open.set()
        first.join()
        assert answers[0].status_code == 200
        assert client.post("/v1/images", json={"num": 2}).status_code == 200


def test_a_server_that_is_to_stop_ends_what_it_began_and_begins_nothing(model):
    service = service_of(published(model))
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json={})))
        first.start()
        assert gate.reached.wait(30)
        assert client.get("/readyz").status_code == 200
        drained = client.portal.start_task_soon(service.drained)
        wait_until(lambda: service.draining)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/images", json={})
        assert refused.status_code == 503
        assert "about to stop" in refused.json()["detail"]
        assert not drained.done()
        gate.open.set()
        drained.result(30)
        first.join()
        assert answers[0].status_code == 200


def test_who_waits_longer_than_the_server_does_is_told(model):
    service = service_of(published(model), drain=0)
    gate = gated(service)
    answers = []
    with TestClient(create_app(service), HERE) as client:
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json={"steps": 50})))
        first.start()
        assert gate.reached.wait(30)
        client.portal.call(service.drained)
        threading.Timer(0.05, gate.open.set).start()
        client.portal.call(service.stop)
        first.join()
    assert answers[0].status_code == 503
    assert "stopped before these images were made" in answers[0].json()["detail"]


def scope_of(path: str, body: bytes, **headers: str) -> dict:
    named = {"host": "127.0.0.1", "content-type": "application/json", **headers}
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": [(key.encode(), value.encode()) for key, value in named.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/events"])
def test_a_client_that_leaves_is_given_up(model, path):
    service = service_of(published(model))
    gate = gated(service)

    async def leave() -> None:
        app, sent = create_app(service), []
        body = b'{"num": 5, "steps": 50}'
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await asyncio.to_thread(gate.reached.wait, 30)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app):
            await app(scope_of(path, body), receive, send)
            assert service.current.runner.engine.held == 0
            assert service.active == 0
            gate.open.set()
        assert service.metrics.gone._value.get() == 1

    asyncio.run(leave())


def test_a_body_that_never_ends_is_not_waited_for(service, monkeypatch):
    monkeypatch.setattr("serving.edges.BODY_SECONDS", 0.05)

    async def dawdle() -> int:
        app, sent = create_app(service), []

        async def receive() -> dict:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: dict) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app):
            await app(scope_of("/v1/images", b""), receive, send)
        return sent[0]["status"]

    assert asyncio.run(dawdle()) == 408


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401), ("", 401), ("Bearer", 401), ("Bearer wrong", 401), (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200), ("Bearer \xff", 401),
    ],
)  # fmt: skip
def test_a_token_is_asked_of_everyone(service, given, status):
    with TestClient(create_app(service, TOKEN.encode()), "http://anywhere.example") as client:
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == status
            assert TOKEN not in answer.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("10.0.0.1", 421),
    ],
)
def test_without_a_token_only_this_machines_names_are_heard(client, host, status):
    assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_all_routes_are_described(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/images", "/v1/images/events", "/v1/models", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    formats = described["paths"]["/v1/images"]["post"]["responses"]["200"]["content"]
    assert set(formats) == {"application/json", "image/png", "application/x-npz"}


class Moving:
    """A source whose model another one takes the place of."""

    def __init__(self, first, second) -> None:
        self.now, self.second, self.trouble = first, second, None

    def fetch(self):
        return self.now

    def has_moved(self, since) -> bool:
        if self.trouble:
            raise self.trouble
        return since.version != self.now.version


def test_another_champion_is_loaded_beside_the_old_one_which_ends_what_it_began(model, tmp_path):
    other = small_model(tmp_path / "other.safetensors", seed=1)
    source = Moving(published(model, 1), published(other, 2))
    said: list[str] = []
    service = service_of(source, poll=0.1)
    service._say = said.append
    gate = gated(service)
    with TestClient(create_app(service), HERE) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/images", json={"num": 2})))
        first.start()
        assert gate.reached.wait(30)
        source.now = source.second
        wait_until(lambda: service.name.version == 2)
        states = [
            (card["model"]["version"], card["state"]) for card in client.get("/v1/models").json()["models"]
        ]
        assert states == [(2, "serving"), (1, "draining")]
        new = client.post("/v1/images", json={"num": 2})
        assert new.headers["x-model-version"] == "2"
        expected = offline(other, SampleSettings(steps=8, eta=1.0), [0, 1])[..., 0].astype(int)
        assert np.abs(pixels(new.json()) - expected).max() <= 1
        assert not answers
        gate.open.set()
        first.join()
        wait_until(lambda: service._old is None)
    old = answers[0]
    assert old.headers.get_list("x-model-version") == ["1"]
    assert old.json()["model"]["version"] == 1
    expected = offline(model, SampleSettings(steps=8, eta=1.0), [0, 1])[..., 0].astype(int)
    assert np.abs(pixels(old.json()) - expected).max() <= 1
    assert said == ["digits version 2 serves now"]


def test_a_champion_that_cannot_be_had_leaves_the_old_one_serving(model, tmp_path):
    source = Moving(published(model, 1), None)
    said: list[str] = []
    service: Service = service_of(source, poll=0.1)
    service._say = said.append
    damaged = tmp_path / "damaged.safetensors"
    whole = model.read_bytes()
    damaged.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])

    def failed(count: int) -> bool:
        return service.metrics.reloads.labels("failed")._value.get() >= count

    with TestClient(create_app(service), HERE) as client:
        source.trouble = ConnectionError("MLflow is away")
        wait_until(lambda: failed(2))
        source.trouble, source.now = None, published(model, 2)._replace(file=damaged)
        wait_until(lambda: failed(4) and len(said) == 2)
        assert client.post("/v1/images", json={}).headers["x-model-version"] == "1"
    assert said[0] == "the model stays as it is: ConnectionError: MLflow is away"
    assert "damaged: its weights are not those" in said[1]
