"""The playground's routes: choices, versions, interpolation and NFE."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from diffusion.analysis.inversion import interpolate
from diffusion.images.pictures import png_bytes
from diffusion.images.pixels import to_nhwc
from diffusion.layout import MODEL, PREPARED
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.guidance_rules import rules_without_guide
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.sample.conditions import class_condition, labels_condition
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.errors import DiffctlError, UsageError
from serving.app import create_app
from serving.model_source import FixedSource, PublishedModel
from serving.playground.router import STATIC, playground
from serving.schemas import HTTP_OPTIONS, MAX_BODY
from serving.service import Service
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.raw_data import random_images
from tests.helpers.served_images import HERE, assert_offline, events_of, pixels
from tests.helpers.server_process import CPU, ServeConfig, published, scores_of, small_model
from tracking.registry.registered_models import VersionFiles


@pytest.fixture
def place(here):
    """A model's file, and a store of real images of its size."""
    return here / MODEL, here / PREPARED / "test", random_images(0, 6, 8, 1)


def client_of(first, store):
    service = Service(FixedSource(first), CPU, ServeConfig())
    return TestClient(create_app(service, None, playground(service, store)), HERE)


@pytest.fixture
def client(place):
    with client_of(published(place[0]), place[1]) as client:
        yield client


def between(client, **body):
    answer = client.post("/playground/between", json=body)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def refused(client, **body):
    answer = client.post("/playground/between", json=body)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


def test_interpolation_between_seeds_ends_at_their_images(client, place):
    body = {"seeds": [3, 4], "frames": 5, "steps": 6, "class": 2, "indices": [7], "guidance": 1.5, "every": 2}
    events = between(client, **body)
    assert [name for name, _ in events] == ["step", "step", "images"]
    frames = pixels(events[-1][1])
    assert frames.shape == (5, 8, 8)
    assert events[-1][1]["settings"]["eta"] == 0  # the best cell has 1
    for frame, seed in [(0, 3), (4, 4)]:
        assert_offline(frames[frame], place[0], SampleSettings(steps=6, seed=seed, guidance=1.5), [7], "2")


@pytest.mark.parametrize("klass", [None, "class7"])
def test_interpolation_between_real_images_equals_the_offline_one(client, place, klass):
    model, _, images = place
    picture = base64.b64encode(png_bytes(images[5])).decode()
    body = {"images": [2, picture], "frames": 4, "steps": 10, "guidance": 2.0, "sampler": "dpm-solver++"}
    events = between(client, **body, **({"class": klass} if klass else {}))
    loaded = load_model(model)
    condition = labels_condition(loaded.artefact, torch.full((2,), spec_of().num_classes), 2)
    if klass:
        condition = class_condition(loaded.artefact, klass, 2)
    wanted = interpolate(loaded, SampleSettings(steps=10), images[[2, 5]], condition, 4)
    assert np.abs(pixels(events[-1][1]) - to_nhwc(wanted)[..., 0].astype(int)).max() <= 1


def test_an_invalid_interpolation_request_is_refused(client):
    other_size = base64.b64encode(png_bytes(random_images(0, 1, 9, 1)[0])).decode()
    invalid = [
        ({}, "give two seeds or two images"),
        ({"seeds": [0, 1], "images": [0, 1]}, "give two seeds or two images"),
        ({"seeds": [0, 1], "frames": 1}, "frames: "),
        ({"seeds": [0, 1], "frames": 65}, "65 images"),
        ({"seeds": [0, 1], "steps": 101}, "101 sampling steps"),
        ({"seeds": [0, 1], "sampler": "euler-ancestral"}, "euler-ancestral adds noise"),
        ({"images": [0, 6]}, "give 0 to 5"),
        ({"images": ["%", 0]}, "base64"),
        ({"images": [0, base64.b64encode(b"no image").decode()]}, "the second picture"),
        ({"images": [0, other_size]}, "9×9 pixels"),
    ]
    for body, words in invalid:
        assert words in refused(client, **body)


def test_pictures_may_be_larger_than_other_requests(client):
    large = base64.b64encode(png_bytes(random_images(0, 1, 200, 3)[0])).decode()
    assert len(large) > MAX_BODY
    assert "200×200 pixels" in refused(client, images=[large, 0])


def test_a_model_tuned_for_consistency_has_no_codes(tmp_path, place):
    spec, process = (
        spec_of(out_channels=1),
        ProcessConfig(schedule="edm", loss="consistency", weighting="none"),
    )
    save_artefact(tmp_path / MODEL, network_of(spec).state_dict(), artefact_of(spec, process=process))
    with client_of(published(tmp_path / MODEL, None, scored=False), place[1]) as client:
        assert "tuned for consistency" in refused(client, images=[0, 1])


def test_choices_are_what_the_model_allows_and_identify_the_cell_of_a_response(client, place):
    choices = client.get("/playground/choices").json()
    controls = {control["name"]: control for control in choices["controls"]}
    hidden = {
        "sampler_options",
        "spacing_options",
        "guidance_rule_options",
        "guide",
        "cond_noise",
    }  # not for it
    assert controls.keys() == HTTP_OPTIONS.keys() - hidden
    of_flows = {"cfg-zero"}
    assert set(controls["guidance_rule"]["choices"]) == {*rules_without_guide()} - of_flows
    assert controls["sampler"]["choices"] == list(SAMPLERS)
    without_eta = [name for name, entry in SAMPLERS.items() if not entry.uses_eta]
    assert {"option": "sampler", "values": without_eta} in controls["eta"]["off"]
    assert controls["guidance"]["allowed"] is True
    assert (controls["steps"]["least"], controls["steps"]["kind"]) == (1, "integer")
    assert choices["store"] == {"images": 6, "why": None}
    cost = choices["cost"]
    assert (cost["metric"], cost["num_images"]) == ("kd_effnet_lite0_64", 500)
    points = [(one["cell"], one["nfe"], one["distance"], one["low"]) for one in cost["points"]]
    assert points == [("steps4-eta0", 4, 0.3, None), ("steps8-eta1", 8, 0.2, None)]
    assert all(one["on_front"] and "seed" not in one["settings"] for one in cost["points"])
    methods = {one["name"]: one["own_step"] for one in choices["edit_methods"]}
    assert methods == {"ddnm": True, "projection": False, "dps": True, "repaint": True}
    real = client.get("/playground/images/3")
    assert real.headers["x-label"] == "3"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(real.content))), place[2][3, ..., 0])
    assert client.get("/playground/images/6").status_code == 404
    answer = client.post("/v1/images", json={"seed": 9}).json()  # the page compares all settings but the seed
    assert answer["settings"] == {**cost["points"][1]["settings"], "seed": 9}
    assert answer["nfe"] == 8


def test_samplers_and_spacings_have_controls_of_their_own_options(client):
    own = client.get("/playground/choices").json()["entry_options"]
    for option, registry in (("sampler", SAMPLERS), ("spacing", SPACINGS)):
        assert own[option].keys() == registry.keys()
        for name, controls in own[option].items():
            defaults = {control["name"]: control["default"] for control in controls}
            wanted = {} if name == "learned" else registry[name].checked_options({})
            assert defaults == {f"{option}_options.{key}": value for key, value in wanted.items()}
            assert all(control["help"].endswith(".") for control in controls)
    order, variant = own["sampler"]["unipc"]
    assert (order["kind"], order["least"], order["most"]) == ("integer", 2, 3)
    assert (variant["kind"], variant["choices"]) == ("choice", ["bh1", "bh2"])
    sigma_min, _ = own["spacing"]["log-snr"]
    assert (sigma_min["kind"], sigma_min["least"], sigma_min["nullable"]) == ("number", 0, True)


@pytest.mark.parametrize("null_class", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_guidance_controls_offer_what_the_model_and_its_guide_allow(tmp_path, null_class, guided):
    model = small_model(tmp_path / "m.safetensors", null_class=null_class)
    guide, scores = small_model(tmp_path / "g.safetensors", seed=1), scores_of(model)
    if guided:
        sha256 = read_artefact(guide).model_sha256
        for cell in scores.cells.values():
            cell.card.update({"guidance": 1.0, "guide": guide.name, "guide_sha256": sha256})
    first = PublishedModel("digits", None, NetworkFiles(model, guide if guided else None), scores)
    with client_of(first, tmp_path) as client:
        controls = {one["name"]: one for one in client.get("/playground/choices").json()["controls"]}
        assert controls["guidance"]["allowed"] == (null_class or guided)
        for rule, works in (("classifier-free", null_class), ("autoguidance", guided)):
            choices = controls["guidance_rule"]["choices"] if "guidance_rule" in controls else []
            assert (rule in choices) == works
            body = {"steps": 2, "eta": 0, "guidance": 2.0, "guidance_rule": rule}
            assert client.post("/v1/images", json=body).status_code == (200 if works else 422)
        if guided:
            assert controls["guide"]["nullable"] == null_class


def test_the_playground_works_without_data_and_scores(place, tmp_path):
    with client_of(published(place[0], None, scored=False), tmp_path / "none") as client:
        choices = client.get("/playground/choices").json()
        assert choices["cost"] is None
        assert choices["store"]["images"] == 0
        assert "no images in" in choices["store"]["why"]
        assert "no images in" in refused(client, images=[0, 1])
        assert len(pixels(between(client, seeds=[0, 1], steps=2, frames=2)[-1][1])) == 2


def test_the_page_loads_nothing_from_other_servers(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    scripts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    for name, text in scripts.items():
        answer = client.get(f"/playground/{name}")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.text == text
        assert set(re.findall(r'from "\./(.+?)"', text)) <= set(scripts)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text + "".join(scripts.values()))
    for name in ("none.js", "..%2fpage.js", "page.py"):
        assert client.get(f"/playground/{name}").status_code == 404
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 421


def test_a_chosen_version_serves(place, tmp_path, monkeypatch):
    files = {2: small_model(tmp_path / "2.safetensors", seed=2), 3: None}

    def fetch(name, number):
        if number not in files:
            raise UsageError(f"{name} has no version {number}")
        if files[number] is None:
            raise DiffctlError(f"the file of version {number} is damaged")
        return VersionFiles(number, NetworkFiles(files[number]), published(files[number]).scores, "run")

    monkeypatch.setattr("serving.model_source.fetch_version_files", fetch)
    with client_of(published(place[0], None), place[1]) as client:
        first = client.get("/v1/models").json()["models"][0]["model"]

        def choose(version):
            return client.post("/playground/version", json={"version": version})

        assert choose(2).json() == {"name": "diffctl-test"}
        second = client.get("/v1/models").json()["models"][0]["model"]
        assert (second["name"], second["version"]) == ("diffctl-test", 2)
        assert second["sha256"] != first["sha256"]
        assert choose(4).json() == {"detail": "diffctl-test has no version 4"}
        assert choose(3).status_code == 503
        assert client.get("/v1/models").json()["models"][0]["model"] == second
        assert choose(None).status_code == 200
        assert client.get("/v1/models").json()["models"][0]["model"] == first
        assert choose(0).status_code == 422


def test_the_nfe_preview_matches_the_images(client):
    def preview(**body):
        return client.post("/playground/guided", json={"steps": 10, "eta": 0, **body})

    full = preview(guidance=2).json()
    assert (full["nfe"], full["everywhere"], full["times"], full["guided"]) == (20, 20, 10, 10)
    limited = {"guidance": 2, "guidance_interval": [0.3, 4]}
    some = preview(**limited).json()
    assert 0 < some["guided"] < 10
    assert some["nfe"] == 10 + some["guided"]
    made = client.post("/v1/images", json={"steps": 10, "eta": 0, **limited}).json()
    assert made["nfe"] == some["nfe"]
    none = preview(guidance=0).json()
    assert (none["nfe"], none["guided"]) == (10, 0)
    assert preview(steps=101).status_code == 422
