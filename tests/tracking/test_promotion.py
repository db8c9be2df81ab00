"""`diffctl promote`, `rollback`, `history` and `seeds`, and the page of a version, on a real MLflow store."""

import hashlib
import json
import re
import urllib.request
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.images.store import write_store
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.model_file import read_artefact
from diffusion.system.errors import DiffctlError, UsageError
from tests.conftest import write_params
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.scores_document import CARD, document
from tests.helpers.small import commit, git
from tracking import keys
from tracking.mlflow_pages import MAX_CHARACTERS, describe_version
from tracking.registry.champion_log import read_history
from tracking.registry.model_versions import DVC_LOCK
from tracking.registry.registered_models import fetch_version_files, register
from tracking.store import connect

NAME = "diffctl-digits"
BEST = "steps2-eta0"
KD = "kd_effnet_lite0_64"
OTHER = {"ema_decay": 0.5}  # another setting


@pytest.fixture(autouse=True)
def _project_of_ann(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    write_params(here)


@pytest.fixture
def register_all(make_model):
    """A function that registers a model of each kernel distance, and returns the gate's last reason."""

    def register_each(*scores: float, seed: int = 1, **changes) -> str:
        for number, score in enumerate(scores, seed):
            make_model(number, {(2, 0.0): score}, **changes)
            reason = register().reason
        return reason

    return register_each


def run(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(main.app, list(arguments))


def history():
    return read_history(connect(), NAME)


def version(number):
    return connect().get_model_version(NAME, str(number))


@pytest.mark.slow
def test_promote_and_rollback_commands_return_their_exit_codes(make_model):
    make_model(1, {(2, 0.0): 0.2})
    assert run("promote").exit_code == 0
    make_model(2, {(2, 0.0): 0.9})
    foreseen = run("promote", "--dry-run")
    assert foreseen.exit_code == 3
    assert "would be kept out: kd_effnet_lite0_64 0.9" in foreseen.stdout
    assert len(connect().search_model_versions(f"name = '{NAME}'")) == 1, "a dry run registers nothing"
    assert run("promote").exit_code == 3
    assert isinstance(run("promote", "2", "--force").exception, UsageError), "--force needs --reason"
    assert run("promote", "2", "--dry-run", "--force", "--reason", "x").exit_code == 0
    assert history().holder == 1
    assert run("promote", "2", "--force", "--reason", "people like it").exit_code == 0
    make_model(1, {(2, 0.0): 0.2})
    assert run("promote").exit_code == 0, "it is better than version 2 and was not rolled back"
    assert run("rollback", "--reason", "blurred").exit_code == 0
    assert (history().aliases, set(history().pinned)) == ({keys.CHAMPION: 2, keys.PREVIOUS: 1}, {1})
    assert run("rollback").exit_code == 0, "version 1 was champion before version 2"
    assert (history().holders, set(history().pinned)) == ([1], {2})
    assert str(run("rollback").exception).startswith(f"{NAME} cannot be rolled back: version 1 is its first")


@pytest.mark.slow
def test_rollback_pins_the_version_until_it_is_forced(make_model, register_all):
    register_all(0.2)
    make_model(2, {(2, 0.0): 0.1})
    assert register().champion == 2
    assert run("rollback", "--reason", "blurred eyes").exit_code == 0
    again = register()  # the next scheduled run
    assert (again.champion, again.passed, again.promoted) == (1, False, False)
    assert "blurred eyes" in again.reason
    assert "diffctl promote 2 --force --reason TEXT" in again.reason
    shown = run("history").stdout
    assert "pinned: version 2" in shown
    assert shown.endswith(f"{NAME}: champion is version 1\n")
    make_model(3, {(2, 0.0): 0.15})
    assert register().champion == 3, "it is better than the version after the rollback"
    assert run("promote", "2").exit_code == 3
    assert run("promote", "2", "--force", "--reason", "x").exit_code == 0
    assert history().pinned == {}


@pytest.mark.slow
def test_rollback_to_a_damaged_model_or_one_with_nan_is_refused(make_model, here):
    make_model(1, {(2, 0.0): 0.2}, add=float("nan"))
    register()
    weights = MODEL.read_bytes()
    (stored,) = here.glob("mlartifacts/**/registered/*/artifacts/model.safetensors")
    make_model(2, {(2, 0.0): 0.1})
    register()
    stored.write_bytes(weights[:-1] + b"x")
    refused = run("rollback").exception
    assert isinstance(refused, DiffctlError)
    assert "SHA-256" in str(refused)
    stored.write_bytes(weights)
    assert "NaN" in str(run("rollback").exception)
    assert history().holder == 2


@pytest.mark.slow
def test_rollback_accepts_only_an_earlier_champion_and_needs_only_the_data_name(register_all, here):
    register_all(0.2)
    assert str(run("rollback").exception).endswith("rolled back: version 1 is its first champion")
    register_all(0.1, 0.9, seed=2)
    for to in ("9", "3", "2"):
        assert isinstance(run("rollback", "--to", to).exception, UsageError)
    (here / "params.yaml").write_text("data: {name: digits, path: 7}\ntrain: {lr: {course: cosine}}\n")
    assert run("rollback", "--to", "1").exit_code == 0
    assert "champion is version 1" in run("history").stdout


@pytest.mark.slow
def test_sample_of_the_champion_uses_the_best_cell_as_serve_does(register_all):
    register_all(0.2)
    for more, steps in ([], 2), (["--steps", "3"], 3):
        done = run("sample", "--champion", "--num", "1", "--out", "one.png", "--json", *more)
        assert json.loads(done.stdout)["steps"] == steps


@pytest.mark.slow
def test_history_and_version_keep_each_decision_with_time_person_commit_and_reason(register_all, here):
    git(here, "init", "--quiet")
    commit(here, "begin")
    head = git(here, "rev-parse", "HEAD").strip()
    register_all(0.2, 0.9)
    kept_out = version(2).tags[keys.DECISION]
    register()
    assert isinstance(run("promote", "--force", "--reason", "x" * 501).exception, UsageError)
    run("promote", "--force", "--reason", "people|like\nit")
    tags = version(2).tags
    assert tags[keys.DECISION] == kept_out
    assert tags[f"{keys.DECISION}.2"].startswith("promoted:")
    assert f"{keys.DECISION}.3" not in tags
    values = json.loads(run("history", "--json").stdout)
    assert (values["champion"], values["previous"], values["pinned"]) == (2, 1, {})
    first, second = values["events"]
    assert (first["before"], first["after"], first["how"], first["commit"]) == (None, 1, "gate", head)
    assert (second["before"], second["after"], second["how"]) == (1, 2, "force")
    assert second["note"] == "people|like it"
    assert second["who"].startswith("ann@")
    assert second["score"] == {"cell": BEST, "metric": "kd_effnet_lite0_64", "value": 0.9}
    assert second["against"]["value"] == 0.2
    assert 0 <= second["at"] - first["at"] < 600_000
    run("promote", "1", "--force", "--reason", '"' * 500)
    assert history().events[-1].note == '"' * 500


def write_samples(sha256: str) -> None:
    """Write ten black images as the best cell's samples."""
    meta = {"name": BEST, "classes": list("0123456789"), "card": {**CARD, "model_sha256": sha256}}
    write_store(SAMPLES / BEST, np.zeros((10, 8, 8, 1), np.uint8), None, meta)


@pytest.mark.slow
def test_version_describes_its_model_scores_and_samples(make_model, here):
    git(here, "init", "--quiet")
    commit(here, "begin")
    write_samples(make_model(1, {(2, 0.0): 0.2, (10, 1.0): 0.3}))
    md5 = hashlib.md5(MODEL.read_bytes()).hexdigest()
    DVC_LOCK.write_text(f"    - path: models/model.safetensors\n      md5: {md5}\n      size: 1\n")
    register()
    tags, text, run_id = version(1).tags, version(1).description, version(1).run_id
    assert tags[keys.DVC_MD5] == md5
    assert tags[keys.GIT_COMMIT] == git(here, "rev-parse", "HEAD").strip()
    assert tags[keys.BEST] == f"kd_effnet_lite0_64 0.2 at {BEST}"
    assert text.startswith("**digits**, 8×8×1, 10 classes: network unet, ")
    assert "| **2 steps, η = 0** | &emsp;200 | &emsp;175 | &emsp;0.2 |" in text
    assert f"diffctl sample --run-id {run_id} " in text
    folder = f"registered/{tags[keys.CARD]}-{tags[keys.UPLOAD]}".replace("/", "%2F")
    assert f"![samples](get-artifact?path={folder}%2Fmontage.png&run_uuid=" in text
    (picture,) = here.glob("mlartifacts/**/montage.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    make_model(2, {(2, 0.0): 0.1})
    register()
    assert "![samples]" not in version(2).description, "they are of the first model"
    many = document({(steps, 0.0): 1 / steps for steps in range(1, 200)})
    text = describe_version(read_artefact(MODEL), many, run_id, folder, with_montage=True)
    assert len(text) < MAX_CHARACTERS
    assert "179 more cells" in text
    assert "| **199 steps, η = 0** |" in text


@pytest.mark.slow
def test_registry_works_on_a_server(make_model, here, monkeypatch):
    server = MlflowServer(here).start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        write_samples(make_model(1, {(2, 0.0): 0.2}))
        assert register().promoted
        assert fetch_version_files(NAME).files.model.read_bytes() == MODEL.read_bytes()
        address = re.search(r"!\[samples\]\((.+)\)", version(1).description)[1]
        assert urllib.request.urlopen(f"{server.uri}/{address}", timeout=60).read().startswith(b"\x89PNG")
        assert history().events[0].after == 1
        assert run("rollback").exception is not None
    finally:
        server.kill()


@pytest.mark.slow
def test_command_prints_rank_and_spread_of_the_newest_scores_of_one_setting(register_all):
    register_all(0.20)
    assert "no scores of other seeds" in run("seeds").stdout
    register_all(0.90, seed=2)
    register_all(0.24, seed=2)
    register_all(0.90, seed=7, train=OTHER)
    register_all(0.22, seed=4, num_images=1000)
    register_all(0.22, seed=3)
    done = run("seeds")
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith(KD))
    assert line.split() == [KD, "0.22", "0.22", "±", "0.02", "2", "of", "3", "1:", "0.2,", "2:", "0.24"]
    values = json.loads(run("seeds", "--json").stdout)
    assert (values["seed"], values["cell"], values["left_out"]) == (3, BEST, {"4": ["num_images"]})
    kernel = next(one for one in values["scores"] if one["metric"] == KD)
    assert kernel == {
        "metric": KD,
        "values": {"1": 0.20, "2": 0.24, "3": 0.22},
        "mean": pytest.approx(0.22),
        "deviation": pytest.approx(0.02),
        "place": 2,
        "apart": False,
    }


@pytest.mark.slow
def test_gate_reports_the_spread_of_one_setting_without_unreadable_scores(register_all, here, uri):
    assert "setting" not in register_all(0.20)
    assert "setting" not in register_all(0.20, add=0.02), "each seed counts once"
    register_all(0.30, seed=5, num_images=1000)  # another protocol does not count
    spread = f"; 2 seeds of their common setting have {KD} 0.22 ± 0.028"
    assert spread in register_all(0.24, seed=2)
    other = version(3).run_id
    files = list(here.glob(f"mlartifacts/*/{other}/**/scores.json"))
    values = json.loads(files[0].read_text())

    def left_out() -> str:
        assert spread in run("promote", "--dry-run").stdout
        with warnings.catch_warnings(record=True) as warned:
            seeds = json.loads(run("seeds", "--json").stdout)
        assert next(one["values"] for one in seeds["scores"] if one["metric"] == KD) == {"1": 0.20, "2": 0.24}
        return ", ".join(str(one.message) for one in warned)

    for changed in ({"cells": {}}, {"extractor": "gone"}):
        for file in files:
            file.write_text(json.dumps(values | changed))
        text = left_out()
        assert "scores are left out: run " in text
        assert f"({other})" in text
        assert str(*changed.values()) in text
    connect().delete_run(other)
    from mlflow.cli import gc  # takes long

    gc.main(["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", other], standalone_mode=False)
    assert not left_out()


@pytest.mark.slow
def test_gate_compares_two_settings_over_their_seeds(register_all):
    register_all(0.20, 0.21, 0.20)
    assert "setting" not in register_all(0.30, train=OTHER), "one seed has no spread"
    reason = register_all(0.31, seed=2, train=OTHER)
    assert f"{KD} 0.305 ± 0.0071 over 2 seeds" in reason
    assert f"{KD} 0.2033 ± 0.0058 over 3" in reason
    assert "no significant gap" not in reason
    assert "no significant gap" in register_all(0.16, seed=3, train=OTHER)
