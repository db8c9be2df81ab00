"""Registering a model: the gate, the checks of its files, and the model as MLflow loads and serves it."""

import base64
import io
import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from requests import post

from diffusion.choice.selection import best_card
from diffusion.images.pixels import to_nhwc
from diffusion.layout import MODEL, MODEL_RUNS, SCORES
from diffusion.model.model_file import load_model, read_artefact
from diffusion.protocol.base_model import BaseConfig, base_text
from diffusion.protocol.scores_document import read_scores, write_scores_document
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.base_file import base_file
from diffusion.sample.conditions import class_condition, mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import run_python
from tests.helpers.disks import make_room
from tests.helpers.mlflow_server import free_port, running_server
from tests.helpers.networks import small_model
from tests.helpers.scores_document import certain, document
from tracking import keys
from tracking.connectivity import MlflowError
from tracking.registry.promotion import Override
from tracking.registry.registered_models import (
    fetch_scores_of,
    fetch_version_files,
    find_version_files,
    register,
)
from tracking.runs.base_models import update_base
from tracking.runs.scored_runs import fetch_model
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
CPU = torch.device("cpu")
NAME = "diffctl-digits"


@pytest.mark.slow
def test_only_a_better_score_of_the_same_protocol_is_promoted(make_model):
    def registered(seed: int, kernel: dict, **card):
        make_model(seed, kernel, **card)
        return register()

    first = registered(1, {(5, 0.0): 0.3, (10, 0.0): 0.2})
    assert (first.version, first.champion, first.promoted) == (1, 1, True)
    worse = registered(2, {(5, 0.0): 0.4, (10, 0.0): 0.25})
    assert (worse.version, worse.champion, worse.promoted) == (2, 1, False)
    assert "0.25" in worse.reason
    assert "version 1's 0.2" in worse.reason
    other = registered(3, {(5, 0.0): 0.1, (10, 0.0): 0.1}, num_images=1000)
    assert (other.champion, other.promoted) == (1, False)
    assert "num_images (500 against 1000)" in other.reason
    better = registered(4, {(10, 0.0): 0.15})
    assert (better.champion, better.promoted) == (4, True)
    aliases = connect().get_registered_model(NAME).aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {keys.CHAMPION: 4, keys.PREVIOUS: 1}
    assert connect().get_model_version(NAME, "2").tags[keys.DECISION] == worse.reason
    fourth, second = (fetch_version_files(NAME, number).files.model.read_bytes() for number in (4, 2))
    assert fourth == MODEL.read_bytes() != second


@pytest.mark.slow
def test_full_artifact_disk_leaves_no_partial_version(make_model, mount, tmp_path):
    make_model(1)
    artifacts = mount(tmp_path / "mlartifacts", "300k")
    with pytest.raises(MlflowError, match="make room"):
        register()
    assert not [path for path in artifacts.rglob("*") if path.is_file() and path.parent.name != "evaluation"]
    assert not connect().search_model_versions(f"name = '{NAME}'")
    make_room(artifacts)
    assert register().promoted
    assert fetch_version_files(NAME).files.model.read_bytes() == MODEL.read_bytes()


@pytest.mark.slow
def test_model_under_a_new_protocol_replaces_its_own_old_version(make_model):
    make_model(1, {(10, 0.0): 0.2})
    register()
    make_model(1, {(10, 0.0): 0.3}, torch="3.0")
    rescored = register()
    assert (rescored.version, rescored.champion, rescored.promoted) == (2, 2, True)
    make_model(2, {(10, 0.0): 0.4}, torch="3.0")
    assert not register().promoted
    assert register(override=Override(force=True)).champion == 3


@pytest.mark.slow
def test_scores_with_intervals_make_a_version_of_scores_without(make_model):
    make_model(1)
    assert register().version == 1
    plain = read_scores(SCORES)
    write_scores_document(SCORES, certain(plain.model_copy(deep=True)))
    for _ in range(2):
        assert (register().version, register().champion) == (2, 2)
    assert fetch_scores_of(NAME) == read_scores(SCORES)
    write_scores_document(SCORES, plain)
    assert register().champion == 2, "it has the same scores, and their intervals"


@pytest.mark.slow
def test_a_version_with_lost_files_is_registered_again(make_model, here):
    make_model(1)
    assert register().version == 1
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/scores.json")
    stored.unlink()
    for _ in range(2):
        assert register().version == 2
    card = best_card(read_scores(SCORES))
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/scores.json")
    text = stored.read_text()
    stored.write_text("{}")
    with pytest.raises(DiffctlError, match="scores"):
        find_version_files(card)
    stored.write_text(text)
    connect().copy_model_version(f"models:/{NAME}/1", NAME)  # the newest one, without its files
    assert find_version_files(card).version == 2


def test_scores_of_another_model_and_damaged_weights_are_refused(make_model, here):
    make_model(1)
    weights = MODEL.read_bytes()
    MODEL.write_bytes(weights[:-9] + bytes([weights[-9] ^ 1]) + weights[-8:])
    with pytest.raises(DiffctlError, match="damaged"):
        register()
    assert not (here / "mlartifacts").exists()
    make_model(1)
    write_scores_document(SCORES, document())
    with pytest.raises(DiffctlError, match="another model"):
        register()


def test_files_that_are_dvc_links_are_registered_fetched_and_checked(make_model, here):
    with pytest.raises(DiffctlError, match="no champion"):
        fetch_version_files(NAME)
    sha256 = make_model(1)
    for path in (MODEL, SCORES):
        path.symlink_to(path.rename(here / f"{path.name}-of-the-cache"))
    register()
    files = [path for path in here.glob("mlartifacts/**/registered/**/*") if path.is_file()]
    assert 5 < len(files) < 12, "a server with passwords takes 0.1 s of CPU for each"
    assert fetch_scores_of(NAME) == read_scores(SCORES)
    path = fetch_version_files(NAME).files.model
    assert path.read_bytes() == MODEL.read_bytes()
    assert read_artefact(path).model_sha256 == sha256
    path.unlink()
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/model.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(DiffctlError, match="SHA-256"):
        fetch_version_files(NAME)


HOSTILE = ("../../../secret", "0123456789abcdef/../../secret", "0123456789abcdef\n", "0123456789ABCDEF")


def set_tag(name: str, value: str) -> str:
    """Change a tag of version 1 and its run, as anybody with write access can; return the run's id."""
    client = connect()
    run_id = client.get_model_version(NAME, "1").run_id
    client.set_model_version_tag(NAME, "1", name, value)
    client.set_tag(run_id, name, value)
    return run_id


@pytest.mark.slow
def test_hostile_card_and_sha256_are_refused_before_any_request(registered, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda *_: pytest.fail("a file was requested"))
    for value, fetch in product(HOSTILE, (fetch_scores_of, fetch_version_files)):
        set_tag(keys.CARD, value)
        with pytest.raises(DiffctlError, match=rf"tag {keys.CARD}: expected 16 hex digits[^\n]*$"):
            fetch(NAME, 1)
    set_tag(keys.CARD, "0" * 16)
    set_tag(keys.UPLOAD, HOSTILE[0])
    with pytest.raises(DiffctlError, match=rf"tag {keys.UPLOAD}: expected 8 hex digits"):
        fetch_scores_of(NAME, 1)
    run_id = set_tag(keys.FILE_SHA256, HOSTILE[0])
    with pytest.raises(DiffctlError, match=keys.FILE_SHA256):
        fetch_model(run_id)
    assert not [path for path in (registered / MODEL_RUNS).rglob("*") if path.is_file()]


GUIDE = Path("guides/early.safetensors")


def make_guided_model(make_model) -> None:
    """Write a model, and its scores under autoguidance by another one."""
    make_model(2)
    GUIDE.parent.mkdir(exist_ok=True)
    MODEL.rename(GUIDE)
    digest = read_artefact(GUIDE).model_sha256
    guidance = {"guidance": 1.0, "guidance_rule": "autoguidance", "guide": str(GUIDE), "nfe": 4}
    make_model(1, {(2, 0.0): 0.1}, **guidance, guide_sha256=digest)


BASE = Path("bases/small.safetensors")
CASCADE = SampleSettings(steps=2, base={"file": str(BASE), "sampling": {"steps": 3}}, cond_noise=0.1)


def make_cascade(make_model) -> None:
    """Write a model that enlarges images, and its scores as a cascade with a base model."""
    BASE.parent.mkdir(exist_ok=True)
    unlabelled = {"num_classes": 0, "null_class": False}
    small_model(BASE, image_size=4, attention_resolutions=(), **unlabelled)
    card = {"base": base_text(CASCADE.base), "cond_noise": 0.1, "nfe": 5, "base_nfe": 3, "weighted_nfe": 2.5}
    digest, model = read_artefact(BASE).model_sha256, {"low_res": 4, "cond_noise": 0.5}
    make_model(1, {(2, 0.0): 0.1}, model=model, base_sha256=digest, **card)


@pytest.mark.slow
def test_a_registered_cascade_carries_its_base_and_a_base_may_be_a_champion(make_model, here):
    make_cascade(make_model)
    original = BASE.read_bytes()
    register()
    BASE.unlink()
    assert fetch_version_files(NAME).files.base.read_bytes() == original
    champion = BaseConfig(champion=NAME)
    with pytest.raises(UsageError, match=f"there is no base champion {NAME}: `diffctl stage sample` fetches"):
        base_file(champion)
    update_base(champion)
    assert base_file(champion).read_bytes() == MODEL.read_bytes()
    assert base_file(BaseConfig(champion=NAME, sampling={"steps": 3})) == base_file(champion)


@pytest.mark.slow
def test_registered_cascade_makes_the_same_images(make_model, here):
    make_cascade(make_model)
    register()
    done = load_and_predict(here, [{"num": 2}, {"num": 2, "cond_noise": 0.6}])
    (answer,), refused = map(json.loads, done.stdout.splitlines())
    condition = mixed_condition(read_artefact(MODEL), CASCADE, [0, 1])
    assert_sampled(answer, CASCADE, condition, Guides(base=load_model(BASE)))
    assert "cond_noise 0.6: the model was trained up to 0.5" in refused


@pytest.mark.slow
def test_registered_model_carries_the_guide_of_its_scores(make_model, here):
    make_guided_model(make_model)
    original = GUIDE.read_bytes()
    GUIDE.write_bytes(MODEL.read_bytes())
    with pytest.raises(UsageError, match=r"the guide guides/early\.safetensors is not the one of the scores"):
        register()
    GUIDE.write_bytes(original)
    register()
    GUIDE.unlink()
    found = fetch_version_files(NAME)
    assert found.files.guide.read_bytes() == original
    card = best_card(found.scores)
    assert find_version_files(card) == found
    assert find_version_files({**card, "guide_sha256": "0" * 64}) is None


LOAD = """
import json, shutil, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model("models:/diffctl-digits@champion")
for request in json.loads(sys.argv[1]):
    try:
        print(json.dumps([reply.model_dump() for reply in model.predict([request])]))
    except Exception as error:
        print(json.dumps(str(error)))
if sys.argv[2:]:
    shutil.copy(*sys.argv[2:])
    mlflow.pyfunc.load_model("models:/diffctl-digits@champion")
"""


def load_and_predict(here: Path, requests: list[dict], *copy: Path) -> subprocess.CompletedProcess:
    """Predict in a process that may not unpickle and cannot import this project.

    `copy` (from, to) is done after that, before the model is loaded again.
    """
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{here / 'mlflow.db'}", "PYTHONPATH": ""}
    env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    return run_python(here, "-c", LOAD, json.dumps(requests), *map(str, copy), env=env)


def pixels(reply: dict) -> np.ndarray:
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in reply["images"]]
    return np.stack([np.asarray(image, dtype=int) for image in images])


def assert_sampled(reply: dict, settings: SampleSettings, condition, guides: Guides = NO_GUIDES) -> None:
    """Assert that the images of a reply are those of this process, up to rounding."""
    made = generate(load_model(MODEL), settings, reply["indices"], condition, CPU, guides=guides)
    assert np.abs(pixels(reply) - to_nhwc(made)[..., 0].astype(int)).max() <= 1


BAD_REQUESTS = {
    "numm": {"numm": 1},
    "64": {"num": 1000},
    "'cat'": {"class": "cat"},
    "5000": {"steps": 5000},
    "indices": {"indices": []},
    "less than or equal to 1000": {"guidance": 1e308},
    "noise: allowed are small, large, learned": {"noise": "none"},
}


@pytest.mark.slow
def test_registered_model_makes_the_same_images_without_pickle(make_model, here):
    make_model(1, {(2, 1.0): 0.1, (3, 0.0): 0.3})
    register()
    suffixes = {path.suffix for path in here.glob("mlartifacts/**/registered/**/*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".joblib", ".pyc"}
    one = {"indices": [1], "steps": 3, "eta": 0, "seed": 5, "class": "7", "guidance": 0.5}
    requests = [{"num": 2}, one | {"guidance_interval": [0.3, 4]}, *BAD_REQUESTS.values()]
    done = load_and_predict(here, requests)
    assert (done.returncode, done.stderr) == (0, "")
    (first,), (second,), *refused = map(json.loads, done.stdout.splitlines())
    best, artefact = SampleSettings(steps=2, eta=1.0), read_artefact(MODEL)
    assert (first["indices"], first["labels"]) == ([0, 1], [0, 1])
    assert_sampled(first, best, mixed_condition(artefact, best, [0, 1]))
    other = SampleSettings(steps=3, eta=0.0, seed=5, guidance=0.5, guidance_interval=(0.3, 4.0))
    assert_sampled(second, other, class_condition(artefact, "7", 1))
    for reason, answer in zip(BAD_REQUESTS, refused, strict=True):
        assert reason in answer


@pytest.mark.slow
def test_registered_model_samples_under_its_guide(make_model, here):
    make_guided_model(make_model)
    register()
    other = {"guide": "guides/other.safetensors"}
    done = load_and_predict(here, [{"num": 2}, {"num": 2, "guidance": 0.0}, other])
    guided, plain, refused = map(json.loads, done.stdout.splitlines())
    best = SampleSettings(steps=2, guidance=1.0, guide=str(GUIDE))
    for (answer,), settings in ((guided, best), (plain, SampleSettings(steps=2))):
        condition = mixed_condition(read_artefact(MODEL), settings, [0, 1])
        assert_sampled(answer, settings, condition, Guides(load_model(GUIDE)))
    assert "served with the guide guides/early.safetensors, not with guides/other" in refused


@pytest.mark.slow
def test_non_finite_and_swapped_models_are_not_served(make_model, here):
    make_model(1, add=math.nan)
    register()
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/model.safetensors")
    make_model(2)
    done = load_and_predict(here, [{"num": 2}], MODEL.absolute(), stored)
    assert "image 0 is NaN or infinite from step 1 on" in json.loads(done.stdout)
    assert done.returncode == 1
    assert "not the one that was registered" in done.stderr


@pytest.mark.slow
def test_mlflow_serves_it_over_http(make_model, here):
    make_model(1, {(2, 0.0): 0.1})
    register()
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # MLflow starts uvicorn by name: the environment's commands must be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{here / 'mlflow.db'}", "PATH": path}
    with running_server(command, f"http://127.0.0.1:{port}/ping", here / "serve.log", cwd=here, env=env):
        body = {"inputs": [{"indices": [3, 4], "class": "5"}]}
        (reply,) = post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60).json()["predictions"]
        assert (reply["indices"], reply["labels"]) == ([3, 4], [5, 5])
        assert pixels(reply).shape == (2, 8, 8)
