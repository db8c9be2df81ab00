import base64
import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.images.pixels import to_nhwc
from diffusion.layout import MODEL, SCORES
from diffusion.model.model_file import load_model, read_artefact
from diffusion.protocol.scores import read_scores, write_document
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.asked import class_condition, mixed_condition
from diffusion.sample.generate import generate
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import diffctl
from tests.helpers.disks import fill_up, make_room, memory_disk
from tests.helpers.mlflow_server import MlflowServer, free_port, wait_for
from tests.helpers.scores_document import document
from tracking import names
from tracking.promotion import Hand
from tracking.reach import MlflowError
from tracking.registry import fetch_champion, fetch_champion_scores, fetch_version, history_of, register
from tracking.store import ENVIRONMENT, connect

pytestmark = pytest.mark.usefixtures("here")
CPU = torch.device("cpu")
NAME = "diffctl-digits"


def test_only_a_better_score_of_the_same_protocol_is_promoted(make_model):
    first = register_model(make_model, 1, {(5, 0.0): 0.3, (10, 0.0): 0.2})
    assert (first.version, first.champion, first.promoted) == (1, 1, True)
    worse = register_model(make_model, 2, {(5, 0.0): 0.4, (10, 0.0): 0.25})
    assert (worse.version, worse.champion, worse.promoted) == (2, 1, False)
    assert "0.25" in worse.reason
    assert "version 1's 0.2" in worse.reason
    other = register_model(make_model, 3, {(5, 0.0): 0.1, (10, 0.0): 0.1}, num_images=1000)
    assert (other.champion, other.promoted) == (1, False)
    assert "num_images (500 against 1000)" in other.reason
    better = register_model(make_model, 4, {(10, 0.0): 0.15})
    assert (better.champion, better.promoted) == (4, True)
    model = connect().get_registered_model(NAME)
    assert {alias: str(number) for alias, number in model.aliases.items()} == {
        names.CHAMPION: "4",
        names.PREVIOUS: "1",
    }
    assert connect().get_model_version(NAME, "2").tags[names.DECISION] == worse.reason
    assert read_artefact(fetch_version(NAME, 4)).model_sha256 == read_artefact(MODEL).model_sha256
    assert read_artefact(fetch_version(NAME, 2)).model_sha256 != read_artefact(MODEL).model_sha256


def register_model(make_model, seed: int, kernel: dict, **card):
    make_model(seed, kernel, **card)
    return register()


def test_registering_again_changes_nothing(make_model):
    make_model(1)
    first = register()
    again = register()
    assert (again.version, again.champion, again.promoted) == (1, 1, False)
    assert "already" in str(again)
    assert str(first) == "diffctl-digits version 1: promoted: the first one; champion is version 1"
    assert len(connect().search_model_versions(f"name = '{NAME}'")) == 1


def test_a_model_that_dvc_has_linked_into_its_cache_is_registered(make_model, tmp_path):
    make_model(1)
    weights = MODEL.read_bytes()
    for path in (MODEL, SCORES):
        cached = path.rename(tmp_path / f"{path.name}-of-the-cache")
        path.symlink_to(cached)
    assert register().promoted
    assert fetch_champion(NAME).read_bytes() == weights


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_half_there(make_model, mount, tmp_path):
    make_model(1)
    artifacts = mount(tmp_path / "mlartifacts", *memory_disk("300k"))
    with pytest.raises(MlflowError, match=r"^MLflow at .*No space left on device.*: make room$") as error:
        register()
    assert "\n" not in str(error.value)
    assert not [path for path in artifacts.rglob("*") if path.is_file() and path.parent.name != "evaluation"]
    assert not connect().search_model_versions(f"name = '{NAME}'")
    make_room(artifacts)
    assert register().promoted
    assert fetch_champion(NAME).read_bytes() == MODEL.read_bytes()


def test_a_disk_that_is_full_has_no_room_for_the_database(make_model, mount, tmp_path, monkeypatch):
    make_model(1)
    disk = mount(tmp_path / "disk", *memory_disk("8m"))
    shutil.copyfile(tmp_path / "mlflow.db", disk / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    fill_up(disk)
    with pytest.raises(MlflowError, match=r": make room$") as error:
        register()
    assert "\n" not in str(error.value)
    make_room(disk)
    assert register().promoted


@pytest.mark.slow
def test_the_champion_comes_under_a_new_protocol_by_being_scored_anew(make_model):
    make_model(1, {(10, 0.0): 0.2})
    register()
    make_model(1, {(10, 0.0): 0.3}, torch="3.0")
    anew = register()
    assert (anew.version, anew.champion, anew.promoted) == (2, 2, True)
    assert not register_model(make_model, 2, {(10, 0.0): 0.4}, torch="3.0").promoted


def test_by_hand_any_model_is_promoted(make_model):
    make_model(1, {(10, 0.0): 0.2})
    register()
    make_model(2, {(10, 0.0): 0.9})
    assert not register().promoted
    assert register(hand=Hand(force=True)).champion == 2


def test_scores_of_another_model_are_refused(make_model):
    make_model(1)
    write_document(SCORES, document())
    with pytest.raises(DiffctlError, match="another model"):
        register()


def test_the_champion_is_fetched_and_checked(make_model, here):
    with pytest.raises(DiffctlError, match="no champion"):
        fetch_champion(NAME)
    sha256 = make_model(1)
    register()
    assert fetch_champion_scores(NAME) == read_scores(SCORES)
    path = fetch_champion(NAME)
    assert read_artefact(path).model_sha256 == sha256
    load_model(path)
    path.unlink()
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/unet.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(DiffctlError, match="not the one that was logged"):
        fetch_champion(NAME)


LOAD = """
import json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model("models:/diffctl-digits@champion")
for request in json.loads(sys.argv[1]):
    try:
        print(json.dumps([reply.model_dump() for reply in model.predict([request])]))
    except Exception as error:
        print(json.dumps(str(error)))
"""


def load_and_predict(here: Path, uri: str, requests: list[dict]) -> subprocess.CompletedProcess:
    """In a process of its own that may not unpickle and does not see this project's code."""
    env = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", LOAD, json.dumps(requests)]
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_registered_model_makes_the_same_images_without_pickle(make_model, here):
    make_model(1, {(2, 1.0): 0.1, (3, 0.0): 0.3})
    register()
    suffixes = {path.suffix for path in here.glob("mlartifacts/**/registered/**/*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".joblib", ".pyc"}
    asked = [{"num": 2}, {"indices": [1], "steps": 3, "eta": 0, "seed": 5, "class": "7", "guidance": 0.5}]
    asked[1] |= {"guidance_interval": [0.3, 4]}
    done = load_and_predict(here, f"sqlite:///{here / 'mlflow.db'}", asked)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (first,), (second,) = map(json.loads, done.stdout.splitlines())
    loaded = load_model(MODEL)
    best = SampleSettings(steps=2, eta=1.0)
    both = mixed_condition(loaded.artefact, best, [0, 1])
    expected = to_nhwc(generate(loaded, best, [0, 1], both, CPU))
    assert np.abs(pixels(first) - expected[..., 0].astype(int)).max() <= 1
    assert (first["indices"], first["labels"]) == ([0, 1], [0, 1])
    other = SampleSettings(steps=3, eta=0.0, seed=5, guidance=0.5, guidance_interval=(0.3, 4.0))
    expected = to_nhwc(generate(loaded, other, [1], class_condition(loaded.artefact, "7", 1), CPU))
    assert np.abs(pixels(second) - expected[..., 0].astype(int)).max() <= 1


def pixels(reply: dict) -> np.ndarray:
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in reply["images"]]
    return np.stack([np.asarray(image, dtype=int) for image in images])


@pytest.mark.slow
def test_a_registered_model_whose_numbers_are_none_says_so(make_model, here):
    make_model(1, add=math.nan)
    register()
    done = load_and_predict(here, f"sqlite:///{here / 'mlflow.db'}", [{"num": 2}, {"guidance": 1e308}])
    weights, guidance = map(json.loads, done.stdout.splitlines())
    assert "image 0 is NaN or infinite from step 1 on" in weights
    assert "less than or equal to 1000" in guidance


@pytest.mark.slow
def test_a_bad_request_is_named(make_model, here):
    make_model(1)
    register()
    bad = {
        "numm": {"numm": 1},
        "64": {"num": 1000},
        "there is no class 'cat'": {"class": "cat"},
        "5000": {"steps": 5000},
        "indices": {"indices": []},
        "noise: Input should be 'small', 'large' or 'learned'": {"noise": "none"},
    }
    done = load_and_predict(here, f"sqlite:///{here / 'mlflow.db'}", list(bad.values()))
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    for reason, answer in zip(bad, answers, strict=True):
        assert reason in json.loads(answer)


@pytest.mark.slow
def test_mlflow_serves_it_over_http(make_model, here):
    make_model(1, {(2, 0.0): 0.1})
    register()
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/diffctl-digits@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # MLflow starts uvicorn by name, so the environment's own commands must be found, activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{here / 'mlflow.db'}", "PATH": path}
    with open(here / "serve.log", "wb") as log:
        process = subprocess.Popen(command, cwd=here, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, here / "serve.log")
        body = json.dumps({"inputs": [{"indices": [3, 4], "class": "5"}]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        (reply,) = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
        assert (reply["indices"], reply["labels"]) == ([3, 4], [5, 5])
        assert pixels(reply).shape == (2, 8, 8)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_model_whose_weights_changed_is_not_registered(make_model, here):
    make_model(1)
    whole = MODEL.read_bytes()
    MODEL.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DiffctlError, match="damaged: its weights are not those that it was written with"):
        register()
    assert not (here / "mlartifacts").exists()


@pytest.mark.slow
def test_a_model_that_was_swapped_is_not_served(make_model, here):
    make_model(1)
    register()
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/unet.safetensors")
    make_model(2)
    stored.write_bytes(MODEL.read_bytes())
    done = load_and_predict(here, f"sqlite:///{here / 'mlflow.db'}", [{"num": 1}])
    assert done.returncode == 1
    assert "not the model that was registered" in done.stderr


@pytest.mark.slow
def test_over_a_real_server(make_model, here, monkeypatch):
    server = MlflowServer(here).start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        sha256 = make_model(1, {(2, 0.0): 0.1})
        assert register().promoted
        assert register().version == 1
        assert read_artefact(fetch_champion(NAME)).model_sha256 == sha256
        make_model(2, {(2, 0.0): 0.2})
        assert not register().promoted
        done = load_and_predict(here, server.uri, [{"num": 1}])
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)[0]["images"]) == 1
    finally:
        server.kill()


@pytest.mark.slow
def test_the_command(make_model, here, monkeypatch):
    for name in ENVIRONMENT:  # what this process's own use of MLflow left
        monkeypatch.delenv(name, raising=False)
    make_model(1)
    done = diffctl(here, "promote")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "diffctl-digits version 1: promoted: the first one; champion is version 1\n"
    assert done.stderr == ""
    values = json.loads(diffctl(here, "promote", "--json").stdout)
    assert (values["version"], values["champion"], values["promoted"]) == (1, 1, False)


def test_the_history_of_nothing_makes_no_store(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(UsageError, match="no registered model diffctl-digits"):
        history_of("diffctl-digits")
    assert list(empty.iterdir()) == []
