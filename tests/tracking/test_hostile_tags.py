"""Tags that are to lead out of the artifact folder, or out of the cache, on a real MLflow store."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.layout import MODEL, MODEL_RUNS, SCORES
from diffusion.system.errors import DiffctlError
from serving.published import ChampionSource, of_run
from tests.conftest import write_params
from tests.tracking.test_promotion import NAME
from tracking import names
from tracking.reach import MlflowError
from tracking.registered import fetch_whole_version
from tracking.registry import fetch_champion, fetch_champion_scores, register
from tracking.runs import fetch_model
from tracking.store import connect, failures, tracking_uri

CLIMBING = (
    "../../../secret",
    "..",
    "/etc/secret",
    "//host/secret",
    "..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "%2e%2e/%2e%2e/secret",
    "%252e%252e%252fsecret",
    "file:///etc/secret",
    "0123456789abcdef/../../secret",
    "0123456789abcdef\n",
    "0123456789ABCDEF",
    "0123456789abcde",
    "\N{FULLWIDTH FULL STOP}" * 2 + "/secret",
)


@pytest.fixture
def registered(here: Path, make_model) -> Path:
    """A project whose champion is version 1, with a secret where the tags lead to."""
    write_params(here)
    make_model(1)
    register()
    for folder in (here, here / "mlartifacts"):
        place = folder / "secret" / "artifacts"
        place.mkdir(parents=True)
        for file in (MODEL, SCORES):
            (place / file.name).write_bytes(file.read_bytes())
    return here


def changed(tag: str, value: str) -> None:
    """Give version 1 another tag, as who may write to MLflow can."""
    connect().set_model_version_tag(NAME, "1", tag, value)


def refused(fetch) -> str:
    with pytest.raises(DiffctlError) as error:
        fetch()
    assert type(error.value) is DiffctlError
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def no_downloads(monkeypatch):
    """Whoever asks MLflow for a file fails."""
    from mlflow.tracking import MlflowClient

    def download(*arguments):
        raise AssertionError(f"asked for {arguments[1:]}")

    monkeypatch.setattr(MlflowClient, "download_artifacts", download)


WAYS = {
    "champion": lambda: fetch_champion(NAME),
    "scores": lambda: fetch_champion_scores(NAME),
    "served champion": ChampionSource(NAME).fetch,
    "served version": lambda: fetch_whole_version(NAME, 1),
}


def test_a_card_that_climbs_is_refused_before_anything_is_asked_for(registered, no_downloads):
    for place, value in enumerate(CLIMBING):
        changed(names.CARD, value)
        for way in WAYS.values() if place == 0 else (WAYS["scores"],):
            said = refused(way)
            assert said.startswith(f"{NAME} version 1, tag {names.CARD}: 16 hex digits are wanted (got '")


def test_a_sha256_that_climbs_is_refused_before_anything_is_asked_for(registered, no_downloads):
    before = set(registered.rglob("*"))
    run_id = connect().get_model_version(NAME, "1").run_id
    ways = (WAYS["champion"], WAYS["served champion"], lambda: fetch_model(run_id), lambda: of_run(run_id))
    for place, value in enumerate(CLIMBING):
        changed(names.FILE_SHA256, value)
        connect().set_tag(run_id, names.FILE_SHA256, value)
        for way in ways if place == 0 else ways[2:3]:
            assert refused(way).startswith(f"MLflow's tag {names.FILE_SHA256}: 64 hex digits are wanted")
    assert set(registered.rglob("*")) == before


def test_sampling_refuses_both_and_leaves_nothing(registered, no_downloads):
    run_id = connect().get_model_version(NAME, "1").run_id
    changed(names.CARD, "../../../secret")
    connect().set_tag(run_id, names.FILE_SHA256, "../../secret")
    for model in (["--champion"], ["--run-id", run_id]):
        done = CliRunner().invoke(main.app, ["sample", *model, "--out", "grid.png", "--num", "1"])
        assert type(done.exception) is DiffctlError, done.output
        assert "hex digits are wanted" in str(done.exception)
    assert not (registered / "grid.png").exists()
    assert not [path for path in (registered / MODEL_RUNS).rglob("*") if path.is_file()]


def test_mlflow_itself_gives_no_file_from_elsewhere(registered):
    """What stands behind our own look: nothing comes, and what it says of that is one sentence."""
    run_id, into = connect().get_model_version(NAME, "1").run_id, registered / "into"
    into.mkdir()
    before, said = set(registered.rglob("*")), []
    for value in CLIMBING:
        try:
            with failures(tracking_uri()):
                path = f"{names.REGISTERED_FOLDER}/{value}/artifacts/{SCORES.name}"
                connect().download_artifacts(run_id, path, str(into))
        except MlflowError as error:
            said.append(str(error))
    assert said
    assert not [one for one in said if "\n" in one]
    assert not [path for path in set(registered.rglob("*")) - before if path.is_file()]


def test_what_was_registered_is_fetched(registered):
    assert fetch_champion(NAME).read_bytes() == MODEL.read_bytes()
    assert fetch_whole_version(NAME, 1).scores == fetch_champion_scores(NAME)
