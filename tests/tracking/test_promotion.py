"""`diffctl promote`, `rollback` and `history`, and what a version says of itself, on a real MLflow store."""

import hashlib
import json
import re
import urllib.request

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.images.store import write_store
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.model_file import read_artefact
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file
from tests.conftest import write_params
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.scores_document import CARD, document
from tests.helpers.small import commit, git
from tracking import names
from tracking.description import MOST_CHARACTERS, describe, montage
from tracking.history import read_history
from tracking.registry import fetch_champion, register
from tracking.store import connect
from tracking.versions import DVC_LOCK

NAME = "diffctl-digits"
BEST = "steps2-eta0"


@pytest.fixture(autouse=True)
def _project_of_ann(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    write_params(here)


def run(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(main.app, list(arguments))


def history():
    return read_history(connect(), NAME)


@pytest.mark.slow
def test_a_command_for_every_way_to_the_top_and_back(make_model):
    make_model(1, {(2, 0.0): 0.2})
    assert run("promote").exit_code == 0
    make_model(2, {(2, 0.0): 0.9})
    foreseen = run("promote", "--dry-run")
    assert foreseen.exit_code == 3
    assert "models/ as it lies here: would be kept out: kd_effnet_lite0_64 0.9" in foreseen.stdout
    assert len(connect().search_model_versions(f"name = '{NAME}'")) == 1  # not even registered
    assert run("promote").exit_code == 3
    refused = run("promote", "2", "--force")
    assert isinstance(refused.exception, UsageError)
    assert run("promote", "2").exit_code == 3
    assert run("promote", "2", "--dry-run", "--force", "--reason", "x").exit_code == 0
    assert history().holder == 1
    forced = run("promote", "2", "--force", "--reason", "people like it")
    assert forced.exit_code == 0
    assert "promoted: put in version 1's place by hand; champion is version 2" in forced.stdout
    make_model(1, {(2, 0.0): 0.2})
    assert run("promote").exit_code == 0  # better than 2 was, and nobody rolled it back
    assert run("rollback", "--reason", "blurred").exit_code == 0
    assert history().aliases == {names.CHAMPION: 2}
    assert set(history().pinned) == {1}


def test_a_rollback_pins_until_a_person_ends_it(make_model):
    make_model(1, {(2, 0.0): 0.2})
    register()
    make_model(2, {(2, 0.0): 0.1})
    assert register().champion == 2
    back = run("rollback", "--reason", "blurred eyes")
    assert back.exit_code == 0
    assert "champion is version 1 again, after version 2, which stays out" in back.stdout
    again = register()  # the next night
    assert (again.champion, again.passed, again.promoted) == (1, False, False)
    assert again.reason.startswith("kept out: ann@")
    assert "(blurred eyes): `diffctl promote 2 --force --reason TEXT` ends that" in again.reason
    shown = run("history").stdout
    assert "pinned: version 2 stays out since " in shown
    assert shown.endswith(f"{NAME}: champion is version 1\n")
    make_model(3, {(2, 0.0): 0.15})
    assert register().champion == 3  # a better one than what was rolled back to
    assert run("promote", "2").exit_code == 3
    assert run("promote", "2", "--force", "--reason", "x").exit_code == 0
    assert history().pinned == {}


def test_a_rollback_looks_at_the_model_first(make_model, here):
    make_model(1, {(2, 0.0): 0.2})
    register()
    make_model(2, {(2, 0.0): 0.1})
    register()
    logged = here.glob("mlartifacts/**/registered/*/artifacts/unet.safetensors")
    first = sha256_file(fetch_champion(NAME))
    (stored,) = [path for path in logged if sha256_file(path) != first]
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    refused = run("rollback")
    assert isinstance(refused.exception, DiffctlError)
    assert "not the one that was logged" in str(refused.exception)
    assert history().holder == 2


def test_a_model_whose_numbers_are_none_is_not_gone_back_to(make_model):
    make_model(1, {(2, 0.0): 0.2}, add=float("nan"))
    register()
    make_model(2, {(2, 0.0): 0.1})
    register()
    refused = run("rollback")
    assert "NaN" in str(refused.exception)
    assert history().holder == 2


@pytest.mark.parametrize(("to", "said"), [
    ("9", "never was champion"),
    ("3", "never was champion"),
    ("2", "is champion already"),
])  # fmt: skip
def test_a_rollback_goes_to_a_holder_alone(make_model, to, said):
    for seed, score in ((1, 0.2), (2, 0.1), (3, 0.9)):
        make_model(seed, {(2, 0.0): score})
        register()
    assert said in str(run("rollback", "--to", to).exception)
    assert run("rollback", "--to", "1").exit_code == 0


def test_what_was_decided_is_not_written_over(make_model):
    make_model(1, {(2, 0.0): 0.2})
    register()
    make_model(2, {(2, 0.0): 0.9})
    kept_out = register().reason
    register()
    run("promote", "2", "--force", "--reason", "x")
    tags = connect().get_model_version(NAME, "2").tags
    assert tags[names.DECISION] == kept_out
    assert tags[f"{names.DECISION}.2"] == "promoted: put in version 1's place by hand"
    assert f"{names.DECISION}.3" not in tags


def test_history_says_when_who_what_and_why(make_model, here):
    git(here, "init", "--quiet")
    commit(here, "begin")
    head = git(here, "rev-parse", "HEAD").strip()
    make_model(1, {(2, 0.0): 0.2})
    register()
    make_model(2, {(2, 0.0): 0.9})
    run("promote", "--force", "--reason", "people|like\nit")
    said = json.loads(run("history", "--json").stdout)
    assert (said["champion"], said["previous"], said["pinned"]) == (2, 1, {})
    first, second = said["events"]
    assert (first["before"], first["after"], first["how"], first["commit"]) == (None, 1, "gate", head)
    assert (second["before"], second["after"], second["how"]) == (1, 2, "force")
    assert second["note"] == "people|like it"
    assert second["who"].startswith("ann@")
    assert second["score"] == {"cell": BEST, "metric": "kd_effnet_lite0_64", "value": 0.9}
    assert second["against"]["value"] == 0.2
    assert 0 <= second["at"] - first["at"] < 600_000
    assert all(len(value) < 5000 for value in connect().get_registered_model(NAME).tags.values())


def test_the_longest_reason_fits_and_a_longer_one_is_refused(make_model):
    make_model(1, {(2, 0.0): 0.2})
    register()
    make_model(2, {(2, 0.0): 0.9})
    assert isinstance(run("promote", "--force", "--reason", "x" * 501).exception, UsageError)
    assert run("promote", "--force", "--reason", '"' * 500).exit_code == 0
    assert history().events[-1].note == '"' * 500
    assert all(len(value) < 5000 for value in connect().get_registered_model(NAME).tags.values())


def test_a_damaged_history_is_named(make_model):
    make_model(1, {(2, 0.0): 0.2})
    register()
    client, (event,) = connect(), history().events
    client.set_registered_model_tag(NAME, event.key, "{}")
    with pytest.raises(DiffctlError, match=f"the tag {event.key} of {NAME} is damaged"):
        register()
    client.delete_registered_model_tag(NAME, event.key)
    with pytest.raises(DiffctlError, match="the tag of move 1 was deleted in MLflow"):
        register()


def test_an_alias_moved_by_hand_in_mlflow_is_put_back_and_told(make_model):
    for seed, score in ((1, 0.2), (2, 0.9)):
        make_model(seed, {(2, 0.0): score})
        register()
    connect().set_registered_model_alias(NAME, names.CHAMPION, "2")
    with pytest.warns(match="the alias champion of diffctl-digits pointed at version 2, and its history has"):
        assert register().champion == 1
    assert history().aliases == {names.CHAMPION: 1}


def sampled(sha256: str) -> None:
    """The best cell's samples, ten black images."""
    card = {**CARD, "model_sha256": sha256}
    meta = {"name": BEST, "classes": list("0123456789"), "card": card}
    write_store(SAMPLES / BEST, np.zeros((10, 8, 8, 1), np.uint8), None, meta)


def test_a_version_says_what_it_is(make_model, here):
    git(here, "init", "--quiet")
    commit(here, "begin")
    sampled(make_model(1, {(2, 0.0): 0.2, (10, 1.0): 0.3}))
    md5 = hashlib.md5(MODEL.read_bytes()).hexdigest()
    DVC_LOCK.write_text(f"    - path: models/unet.safetensors\n      md5: {md5}\n      size: 1\n")
    register()
    version = connect().get_model_version(NAME, "1")
    assert version.tags[names.DVC_MD5] == md5
    assert version.tags[names.GIT_COMMIT] == git(here, "rev-parse", "HEAD").strip()
    assert version.tags[names.BEST] == f"kd_effnet_lite0_64 0.2 at {BEST}"
    text = version.description
    assert text.startswith("**digits**, 8×8×1, 10 classes: network unet, ")
    assert "| **2 steps, η = 0** | 200 | 175 | 0.2 |" in text
    assert f"diffctl sample --run-id {version.run_id} " in text
    folder = f"registered/{version.tags[names.CARD]}"
    assert f"![samples](get-artifact?path={folder.replace('/', '%2F')}%2Fmontage.png&run_uuid=" in text
    (picture,) = here.glob("mlartifacts/**/montage.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_page_of_a_version_finds_its_picture(make_model, here, monkeypatch):
    server = MlflowServer(here).start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        sampled(make_model(1, {(2, 0.0): 0.2}))
        register()
        text = connect().get_model_version(NAME, "1").description
        address = re.search(r"!\[samples\]\((.+)\)", text)[1]
        assert urllib.request.urlopen(f"{server.uri}/{address}", timeout=60).read().startswith(b"\x89PNG")
        assert history().events[0].after == 1
        assert run("rollback").exception is not None
    finally:
        server.kill()


def test_samples_of_another_model_are_not_shown(make_model):
    make_model(1, {(2, 0.0): 0.2})
    sampled("f" * 64)
    register()
    assert "![samples]" not in connect().get_model_version(NAME, "1").description


def test_a_description_says_where_it_departs_from_the_protocol_that_is_named(make_model):
    make_model(1)
    named = document({(10, 0.0): 0.1}).model_copy(update={"protocol": "ddim"})
    text = describe(read_artefact(MODEL), named, "r" * 32, "registered/x", with_montage=False)
    assert "By the protocol of DDIM" in text
    assert "data.name is" in text
    assert "By the protocol" not in describe(
        read_artefact(MODEL), document(), "r" * 32, "x", with_montage=False
    )


def test_a_large_sweep_fits_the_description(make_model):
    make_model(1)
    many = document({(steps, 0.0): 1 / steps for steps in range(1, 200)})
    text = describe(read_artefact(MODEL), many, "r" * 32, "registered/x", with_montage=True)
    assert len(text) < MOST_CHARACTERS
    assert "179 more cells are in its scores.json" in text
    assert "| **199 steps, η = 0** |" in text
    assert montage(many) is None
