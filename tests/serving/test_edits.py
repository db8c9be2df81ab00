"""`/v1/edits`: results equal those of `diffctl edit`, share passes with other requests, and have limits."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from diffusion.images.pictures import png_bytes
from diffusion.model.model_file import DataCard, save_artefact
from diffusion.protocol.settings import SampleSettings
from serving.app import create_app
from serving.schemas import MAX_EDIT_BODY
from tests.helpers.networks import artefact_of, edm_model, network_of, spec_of
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE, Greys, assert_offline, events_of, pixels
from tests.helpers.server_process import gated, published, service_of
from tests.helpers.waiting import wait_until

PICTURE = random_images(0, 1, 8, 1)[0]
WIDE = random_images(1, 1, 30, 1)[0, :20]
MASK = np.zeros((8, 8, 1), np.uint8)
MASK[:, 5:] = 255


def encoded(picture: np.ndarray) -> str:
    return base64.b64encode(png_bytes(picture)).decode()


def edited(client, **body) -> dict:
    answer = client.post("/v1/edits", json={"image": encoded(PICTURE), "steps": 3, **body})
    assert answer.status_code == 200, answer.text
    values: dict = answer.json()
    return values


CASES = [
    (["--mask", "mask.png"], {"mask": encoded(MASK)}),
    (["--mask", "5,0,8,8", "--method", "repaint", "--method-option", "travel_length=1"],
     {"operator": "mask:5,0,8,8", "method": "repaint", "method_options": {"travel_length": 1}}),
    (["--mask", "mask.png", "--method", "projection", "--sampler", "heun", "--guidance", "2", "--class", "3"],
     {"mask": encoded(MASK), "method": "projection", "sampler": "heun", "guidance": 2, "class": 3}),
    (["--upscale", "2", "--degrade", "--sigma-y", "0.1", "--seed", "7"],
     {"operator": "downsample:2", "degrade": True, "sigma_y": 0.1, "seed": 7}),
    (["--deblur", "0.6", "--method", "dps"], {"operator": "blur:0.6", "method": "dps"}),
    (["--strength", "0.6", "--class", "class7", "--eta", "1"],
     {"strength": 0.6, "class": "class7", "eta": 1}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("options", "body"), CASES)
def test_results_equal_those_of_diffctl_edit(client, model, tmp_path, monkeypatch, invoke, options, body):
    monkeypatch.chdir(tmp_path)
    picture = WIDE if "degrade" in body else PICTURE
    Image.fromarray(picture[:, :, 0]).save("a.png")
    Image.fromarray(MASK[:, :, 0]).save("mask.png")
    common = ["--model", str(model), "--steps", "3", "--num", "5", "--out", "x.npz", "--json"]
    done = invoke("edit", "a.png", *options, *common)
    assert done.code == 0, done.err
    values = edited(client, **{"image": encoded(picture), "num": 5, **body})
    assert np.array_equal(pixels(values), np.load("x.npz")["arr_0"][..., 0])
    offline = json.loads(done.out)
    assert (values["nfe"], values["edit"]["operator"]) == (
        offline["card"]["nfe"],
        offline["card"]["operator"],
    )
    assert offline["resized"] == ([] if values["resized"] is None else [f"a.png: {values['resized']}"])
    one = edited(client, **{"image": encoded(picture), "indices": [3], **body})
    assert np.abs(pixels(one)[0] - pixels(values)[3]).max() <= 1  # the batch changes the rounding


def test_transparent_pixels_are_filled_and_others_kept(client):
    clear = np.concatenate([PICTURE, 255 - MASK], axis=2)
    values = edited(client, image=encoded(clear), mask="alpha")
    found: Greys = pixels(values)
    assert found.shape == (8, 8, 8)
    assert (found[:, :, :5] == PICTURE[:, :5, 0]).all()
    assert len({image.tobytes() for image in found}) == 8
    assert np.array_equal(found, pixels(edited(client, mask=encoded(MASK))))


def test_larger_pictures_keep_nothing_of_what_a_mask_hides(client):
    photo = np.full((70, 70, 2), 200, np.uint8)
    photo[:31] = 0
    photo[31:, :, 1] = 255
    assert (pixels(edited(client, image=encoded(photo), mask="alpha"))[:, 4:] == 200).all()


def test_a_body_may_be_the_picture_with_the_other_keys_in_the_query(client):
    keys = {
        "operator": "downsample:2+mask:2,0,4,4",
        "class": 3,
        "num": 2,
        "steps": 3,
        "method_options": '{"eta": 0.5}',
    }
    headers = {"Content-Type": "image/png"}
    for path in ("/v1/edits", "/v1/edits/events"):
        query = urlencode(keys, safe="+")  # as in a URL written by hand
        answer = client.post(f"{path}?{query}", content=png_bytes(PICTURE), headers=headers)
        values = answer.json() if path == "/v1/edits" else events_of(answer.text)[-1][1]
        assert values == edited(client, **{**keys, "method_options": {"eta": 0.5}})
    pixels = np.random.default_rng(0).integers(0, 256, (1550, 1550, 3), dtype=np.uint8)
    large = png_bytes(pixels)
    assert 6 << 20 < len(large) < 8 << 20
    answer = client.post("/v1/edits", params={"strength": 0.5, "steps": 2}, content=large, headers=headers)
    assert answer.status_code == 200
    for query, words in (
        ({"strength": "x"}, "strength: it must be a number (got 'x')"),
        ({}, "nothing to do"),
    ):
        answer = client.post("/v1/edits", params=query, content=png_bytes(PICTURE), headers=headers)
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True)


def test_an_integer_is_a_label_and_a_text_a_name(tmp_path):
    classes = ("1", "2", "null")
    spec, data = spec_of(num_classes=3), DataCard(name="d", classes=classes, counts=(1, 1, 1), digest="0")
    model = tmp_path / "m.safetensors"
    save_artefact(model, network_of(spec).state_dict(), artefact_of(spec, data=data))
    picture = {"Content-Type": "image/png"}
    with TestClient(create_app(service_of(published(model, scored=False))), HERE) as client:
        for label, name in enumerate(classes):
            by_label, by_name = (edited(client, strength=1, num=1, **{"class": one}) for one in (label, name))
            assert by_label["labels"] == by_name["labels"] == [label]
            sampled = client.post("/v1/images", json={"class": label, "steps": 1}).json()
            assert sampled["labels"] == [label]
            query = {"class": name, "strength": 1, "num": 1, "steps": 3}
            in_query = client.post("/v1/edits", params=query, content=png_bytes(PICTURE), headers=picture)
            assert in_query.json() == by_name


def test_model_of_process_edm_is_sampled_and_edited_with_spacing_karras(tmp_path):
    model = edm_model(tmp_path / "m.safetensors")
    with TestClient(create_app(service_of(published(model, scored=False))), HERE) as client:
        for options, spacing in (({}, "karras"), ({"spacing": "uniform"}, "uniform")):
            values = edited(client, operator="downsample:2", num=1, **options)
            assert values["settings"]["spacing"] == spacing
            sampled = client.post("/v1/images", json={"steps": 2, **options}).json()
            assert sampled["settings"]["spacing"] == spacing
        (listed,) = client.get("/v1/models").json()["models"]
        assert listed["usual"]["spacing"] == "karras"


def test_spacing_learned_has_the_times_of_the_sweep(model):
    served = published(model)
    for cell in served.scores.cells.values():
        levels = np.geomspace(9.0, 0.1, cell.steps).tolist()
        cell.card.update(spacing="learned", spacing_options=json.dumps({"levels": levels}))
    with TestClient(create_app(service_of(served)), HERE) as client:
        values = edited(client, operator="downsample:2", num=1, steps=4, spacing="learned")
        assert len(values["settings"]["spacing_options"]["levels"]) == 4


def test_events_end_with_the_response(client):
    body = {"image": encoded(PICTURE), "mask": encoded(MASK), "steps": 5, "num": 2, "format": "json"}
    whole = client.post("/v1/edits", json=body).json()
    del body["format"]
    events = events_of(client.post("/v1/edits/events", json={**body, "every": 2}).text)
    assert [(name, values.get("step")) for name, values in events] == [
        ("step", 2),
        ("step", 4),
        ("images", None),
    ]
    assert events[-1][1] == whole
    assert whole["edit"]["method_options"]["eta"] == 0.85
    assert whole["labels"] is None
    lines = client.get("/metrics").text.splitlines()
    for path in ("/v1/edits", "/v1/edits/events"):
        assert f'diffctl_requests_total{{path="{path}",status="200"}} 1.0' in lines


def test_edits_share_passes_with_other_requests(model):
    service = service_of(published(model))
    gate = gated(service)
    body = {"image": encoded(PICTURE), "mask": encoded(MASK), "steps": 6, "num": 3}
    images = {"num": 2, "steps": 6, "eta": 0}
    with TestClient(create_app(service), HERE) as client, ThreadPoolExecutor(2) as threads:
        sampled = threads.submit(client.post, "/v1/images", json=images)
        assert gate.reached.wait(30)
        filled = threads.submit(client.post, "/v1/edits", json=body)
        wait_until(lambda: service.current.loop.engine.held == 5)
        gate.open.set()
        assert_offline(pixels(sampled.result().json()), model, SampleSettings(steps=6), [0, 1])
        shared = pixels(filled.result().json())
        assert service.metrics.rows._sum.get() == 30
        assert "diffctl_pass_rows_count 7.0" in client.get("/metrics").text  # the first one was alone
        assert np.abs(shared - pixels(client.post("/v1/edits", json=body).json())).max() <= 1


with io.BytesIO() as file:
    Image.new("1", (5000, 5000)).save(file, "png")
    BOMB = base64.b64encode(file.getvalue()).decode()
INVALID = [
    ({}, "nothing to do: give a mask, an operator or a strength"),
    ({"strength": 0.5, "operator": "gray"}, "strength edits the whole picture"),
    ({"strength": 0.5, "degrade": True}, "degrade measures the image: give a mask or an operator"),
    ({"image": 5, "strength": 0.5}, "image: it must be text (got 5)"),
    ({"image": "data:image/png;base64,AAAA", "strength": 0.5}, "the image is not in base64"),
    ({"image": "é", "strength": 0.5}, "the image is not in base64"),
    ({"image": base64.b64encode(b"GIF89a").decode(), "strength": 0.5}, "the image is not an image"),
    ({"image": BOMB, "strength": 0.5}, "the image has 5000×5000 pixels: give 16 million at most"),
    ({"mask": BOMB}, "the mask has 5000×5000 pixels"),
    ({"mask": encoded(MASK * 0)}, "the mask hides no pixel"),
    ({"mask": encoded(MASK), "operator": "downsample:2"}, "takes no mask: end it with +mask"),
    ({"operator": "gray"}, "gray needs images with 3 channels (got 1)"),
    ({"operator": "zoom:2"}, "zoom"),
    ({"operator": "mask"}, "needs the hidden pixels"),
    ({"mask": encoded(MASK), "method": "sdedit"}, "method sdedit takes no operator"),
    ({"mask": encoded(MASK), "eta": 1}, "has its own step and takes no eta"),
    ({"mask": encoded(MASK), "method_options": {"zeta": 1}}, "zeta: unknown key"),
    ({"strength": 1.5}, "strength: "),
    ({"strength": 0.5, "num": 65}, "65 images are too many at once"),
    ({"strength": 0.5, "steps": 1001}, "1001 steps are too many"),
    ({"strength": 0.5, "class": "cat"}, "'cat'"),
    ({"strength": 0.5, "budget": 4}, "budget: unknown key"),
    ({"mask": encoded(MASK), "method": "repaint", "steps": 100, "method_options": {"travel_repeat": 100}},
     "method repaint takes more than 4000 network evaluations per image"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), INVALID)
def test_an_invalid_edit_is_refused_with_a_sentence(client, body, words):
    answer = client.post("/v1/edits", json={"image": encoded(PICTURE), **body})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 800


def test_a_form_is_refused_with_the_types_that_are_taken(client):
    answer = client.post("/v1/edits", files={"image": png_bytes(PICTURE)})
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("Content-Type: application/json, or a picture's")


def test_bodies_are_limited_one_by_one_and_in_total(client, monkeypatch):
    body = {"image": "A" * MAX_EDIT_BODY, "strength": 0.5}
    answer = client.post("/v1/edits", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (413, "a request has 8,388,608 bytes at most")
    monkeypatch.setattr("serving.middleware.MAX_BODIES", 100_000)
    body["image"] = "A" * 200_000
    answer = client.post("/v1/edits", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert (
        edited(client, strength=0.5, num=1)["edit"]["method"] == "sdedit"
    )  # the refused bytes are free again
