"""The HTTP application: served images equal offline images, and errors are one sentence."""

import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from diffusion.images.pictures import contact_sheet, png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.model.model_file import load_model
from diffusion.protocol.base_model import base_text
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.sample.network_files import NetworkFiles
from serving.app import create_app
from serving.handlers import encode_pngs
from tests.helpers.served_images import HERE, assert_offline, events_of, offline, pixels
from tests.helpers.server_process import CPU, published, scores_of, service_of, small_model

REQUESTS = [
    ({}, SampleSettings(steps=8, eta=1.0), [0], None),
    ({"indices": [7, 2], "eta": 0, "class": 4}, SampleSettings(steps=8), [7, 2], "4"),
    ({"budget": 5, "class": "class2", "seed": 1}, SampleSettings(steps=4, seed=1), [0], "class2"),
    ({"sampler": "dpm-solver++", "steps": 4, "guidance": 1.5, "num": 2},
     SampleSettings(sampler="dpm-solver++", steps=4, guidance=1.5), [0, 1], None),
    ({"steps": 6, "guidance": 2, "guidance_interval": [0.3, 4], "num": 2},
     SampleSettings(steps=6, eta=1.0, guidance=2.0, guidance_interval=(0.3, 4.0)), [0, 1], None),
]  # fmt: skip


@pytest.mark.parametrize(("request_body", "settings", "indices", "klass"), REQUESTS)
def test_served_images_equal_offline_images(client, model, request_body, settings, indices, klass):
    answer = client.post("/v1/images", json=request_body)
    assert answer.status_code == 200, answer.text
    values = answer.json()
    assert values["indices"] == indices
    assert SampleSettings(**values["settings"]) == settings
    if klass is not None:
        assert values["labels"] == [int(klass.removeprefix("class"))] * len(indices)
    assert_offline(pixels(values), model, settings, indices, klass)


def with_usual(model, **usual):
    """The model with scores whose cells have these settings."""
    scores = scores_of(model)
    for cell in scores.cells.values():
        cell.card.update(usual)
    return published(model, None)._replace(scores=scores)


def test_a_served_model_carries_the_guide_of_its_best_cell(model, tmp_path):
    usual = {"guidance": 1.0, "guide": "ema:0.1@300"}
    guide = small_model(tmp_path / "early.safetensors", seed=1)
    scored = with_usual(model, **usual)._replace(files=NetworkFiles(model, guide))
    with TestClient(create_app(service_of(scored)), HERE) as client:
        found = client.post("/v1/images", json={"steps": 4, "eta": 0}).json()
        assert (found["settings"]["guide"], found["nfe"]) == ("ema:0.1@300", 8)
        loaded, settings = load_model(model), SampleSettings(steps=4, **usual)
        condition = mixed_condition(loaded.artefact, settings, [0])
        guides = Guides(load_model(guide))
        expected = to_nhwc(generate(loaded, settings, [0], condition, CPU, guides=guides))
        assert np.abs(pixels(found) - expected[..., 0].astype(int)).max() <= 1
        plain = client.post("/v1/images", json={"steps": 4, "eta": 0, "guide": None}).json()
        assert (plain["settings"]["guide"], plain["nfe"]) == (None, 8), "classifier-free"
        other = client.post("/v1/images", json={"guide": "models/other.safetensors"})
        assert other.status_code == 422
        assert "is served with the guide ema:0.1@300, not with models/other" in other.json()["detail"]
        assert client.post("/v1/images", json={"budget": 5}).json()["settings"]["steps"] == 4
        idle = client.post("/v1/images", json={"guidance": 0, "guide": "ema:0.1@300"})
        assert (idle.status_code, "no effect" in idle.json()["detail"]) == (422, True)
    scored.scores.cells["steps4-eta0"].card["guide"] = "ema:0.2@300"
    with TestClient(create_app(service_of(scored)), HERE) as client:
        answer = client.post("/v1/images", json={"budget": 5})
        assert "no cell of the sweep takes 5 network evaluations" in answer.json()["detail"]


def test_given_images_and_those_of_a_base_are_enlarged(tmp_path):
    model = small_model(tmp_path / "large.safetensors", low_res=4, cond_noise=0.5)
    base = small_model(tmp_path / "base.safetensors", image_size=4, attention_resolutions=())
    loaded, small = load_model(model), load_model(base)
    cascade = SampleSettings(steps=2, base={"file": "base.safetensors", "sampling": {"steps": 3}})
    condition = mixed_condition(loaded.artefact, cascade, range(2))
    made = generate(loaded, cascade, range(2), condition, CPU, guides=Guides(base=small))
    pictures = to_nhwc(generate(small, SampleSettings(steps=3), range(2), condition, CPU))
    body = {"num": 2, "steps": 2, "eta": 0, "low_res": encode_pngs(pictures)}
    with TestClient(create_app(service_of(published(model, None, scored=False))), HERE) as client:
        answer = client.post("/v1/images", json=body).json()
        assert np.abs(pixels(answer) - to_nhwc(made)[..., 0].astype(int)).max() <= 1
        for wrong, message in (
            ({"low_res": None}, "the model enlarges images of 4×4 pixels: give some (low_res, "),
            ({"num": 3}, "low_res has 2 pictures for 3 images: give one, or one for each"),
            ({"low_res": encode_pngs(to_nhwc(made))}, "low_res has 8×8 pixels: the model takes 4×4"),
            ({"cond_noise": 0.6}, "cond_noise 0.6: the model was trained up to 0.5"),
        ):
            refused = client.post("/v1/images", json={**body, **wrong})
            assert refused.status_code == 422
            assert message in refused.json()["detail"]
    scored = with_usual(model, base=base_text(cascade.base))._replace(files=NetworkFiles(model, base=base))
    with TestClient(create_app(service_of(scored)), HERE) as client:
        answer = client.post("/v1/images", json={"num": 2, "steps": 2, "eta": 0}).json()
        assert np.abs(pixels(answer) - to_nhwc(made)[..., 0].astype(int)).max() <= 1
        assert answer["nfe"] == 2 + 3
        given = client.post("/v1/images", json=body).json()
        assert (given["settings"]["base"], given["nfe"]) == (None, 2)


def test_the_best_cells_interval_is_the_default_and_null_disables_it(model):
    scored = with_usual(model, guidance=2.0, guidance_interval="0.3:4")
    with TestClient(create_app(service_of(scored)), HERE) as client:
        for body, interval in (
            ({}, [0.3, 4.0]),
            ({"guidance": 1}, [0.3, 4.0]),
            ({"guidance_interval": [0, 1]}, [0.0, 1.0]),
            ({"guidance_interval": None}, None),
            ({"guidance": 0}, None),
        ):
            answer = client.post("/v1/images", json=body)
            assert answer.json()["settings"]["guidance_interval"] == interval


def test_without_scores_the_default_is_fifty_steps_of_ddim(model):
    with TestClient(create_app(service_of(published(model, None, scored=False))), HERE) as client:
        answer = client.post("/v1/images", json={})
        assert SampleSettings(**answer.json()["settings"]) == SampleSettings()
        assert answer.json()["model"]["version"] is None
        assert answer.headers["x-model-version"] == "none"
        assert client.post("/v1/images", json={"budget": 10}).status_code == 422


def test_grid_and_npz_formats_hold_the_offline_images(client, model):
    expected = offline(model, SampleSettings(steps=8, eta=1.0), range(4))
    grid = client.post("/v1/images", json={"num": 4, "format": "grid"})
    assert grid.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(grid.content)), dtype=int)
    wanted = np.asarray(Image.open(io.BytesIO(png_bytes(contact_sheet(expected)))), dtype=int)
    assert np.abs(shown - wanted).max() <= 1
    arrays = client.post("/v1/images", json={"num": 4, "format": "npz"})
    assert arrays.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(arrays.content)) as file:
        assert np.abs(file["arr_0"].astype(int) - expected).max() <= 1
        assert file["arr_1"].tolist() == [0, 1, 2, 3]


def test_events_stream_intermediate_images_and_end_with_the_response(client):
    body = {"num": 3, "steps": 7, "eta": 0}
    events = events_of(client.post("/v1/images/events", json={**body, "every": 3}).text)
    steps = [(name, values.get("step")) for name, values in events]
    assert steps == [("step", 3), ("step", 6), ("images", None)]
    assert all(pixels(values).shape == (3, 8, 8) for _, values in events)
    assert events[0][1]["indices"] == [0, 1, 2]
    assert events[-1][1] == client.post("/v1/images", json=body).json()


INVALID = [
    ({"num": 0}, "num: "),
    ({"nums": 1}, "nums: unknown key"),
    ({"num": 65}, "65 images are too many at once: ask for 64 at most"),
    ({"steps": 1001}, "1001 steps"),
    ({"steps": 101}, "101 sampling steps"),
    ({"budget": 2}, "no cell of the sweep"),
    ({"budget": 9, "steps": 4}, "budget takes steps"),
    ({"guidance": 1, "guide": "/etc/passwd"}, "is served with no guide, not with /etc/passwd"),
    ({"sampler": "dpm-solver++", "eta": 1}, "dpm-solver++ does not use eta"),
    ({"class": "cat"}, "'cat'"),
    ({"seed": 2**63}, "seed: "),
    ({"format": "gif"}, "format: allowed are json, grid, npz (got 'gif')"),
]


@pytest.mark.parametrize(("body", "field"), INVALID)
def test_an_invalid_request_is_refused_with_its_field(client, body, field):
    answer = client.post("/v1/images", json=body)
    assert answer.status_code == 422
    assert field in answer.json()["detail"]


BROKEN = [
    (b"", 422), (b"{", 422), (b"null", 422), (b"[" * 60_000, 400), (b'{"eta": NaN}', 422),
    (b'{"guidance": 1e999}', 422), (b"\xff\xfe{}", 422), (b'{"class": "\\ud800"}', 422),
    (b'{"\\ud800": 1}', 422), (b'{"seed": ' + b"9" * 5000 + b"}", 422), (b"[" + b" " * 70_000 + b"]", 413),
]  # fmt: skip


def test_malformed_json_is_refused_with_a_sentence(client):
    for body, status in BROKEN:
        answer = client.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (status, 400), body[:30]
        assert isinstance(answer.json()["detail"], str)
        assert "Traceback" not in answer.text
    # A form of another site, which a browser sends without asking, is not declared as JSON.
    form = client.post("/v1/images", content=b'{"num": 1}', headers={"Content-Type": "text/plain"})
    assert form.json()["detail"].endswith("send the header Content-Type: application/json")


def test_non_finite_images_are_an_error_of_their_request(model):
    service = service_of(published(model))
    _, loaded, _ = service._first
    for weight in loaded.network.parameters():
        weight.fill_(float("nan"))
    with TestClient(create_app(service), HERE) as client:
        answer = client.post("/v1/images", json={"num": 2})
        assert answer.status_code == 422
        assert "image 0 is NaN" in answer.json()["detail"]
        (event,) = events_of(client.post("/v1/images/events", json={}).text)
        assert event[0] == "error"
        assert "image 0 is NaN" in event[1]["detail"]


def test_an_internal_error_reveals_no_details(model):
    service = service_of(published(model))

    def broken(x, t, labels):
        raise RuntimeError("/secret/path")

    first, loaded, guides = service._first
    service._first = first, loaded._replace(network=broken), guides
    with TestClient(create_app(service), HERE, raise_server_exceptions=False) as client:
        answer = client.post("/v1/images", json={})
        assert answer.status_code == 500
        assert answer.json() == {"detail": "the server failed: see its log"}
        assert answer.headers["x-model-version"] == "3"
        assert client.get("/readyz").status_code == 200


def test_every_response_names_its_model_and_the_list_has_its_card_front_and_limits(client, service):
    for method, path in (("GET", "/nothing"), ("PUT", "/v1/images"), ("POST", "/v1/images")):
        headers = client.request(method, path).headers
        assert headers["x-model-name"] == "digits"
        assert headers["x-model-version"] == "3"
        assert headers["x-model-sha256"] == service.current.ref.sha256
    (listed,) = client.get("/v1/models").json()["models"]
    assert listed["model"] == {"name": "digits", "version": 3, "sha256": service.current.ref.sha256}
    assert listed["state"] == "serving"
    assert listed["card"]["data"]["name"] == "test"
    assert listed["usual"]["steps"] == 8
    assert {cell["cell"]: cell["nfe"] for cell in listed["front"]} == {"steps4-eta0": 4, "steps8-eta1": 8}
    assert listed["limits"] == {"images": 64, "steps": 1000}


def test_metrics_count_requests_images_and_passes(client):
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
