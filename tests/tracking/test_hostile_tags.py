"""Tags that try to leave the artifact folder or the cache, on a real MLflow store."""

from pathlib import Path

import pytest

from diffusion.layout import MODEL_RUNS
from diffusion.system.errors import DiffctlError
from serving.model_source import ChampionSource, model_of_run
from tracking import keys
from tracking.registry.model_registry import register
from tracking.registry.model_versions import check_digest
from tracking.registry.registered_models import fetch_champion, fetch_scores_of, fetch_version_files
from tracking.runs.scored_runs import fetch_model
from tracking.store import connect

NAME = "diffctl-digits"
HOSTILE = (
    "../../../secret",
    "/etc/secret",
    "..\\..\\secret",
    "%2e%2e/%2e%2e/secret",
    "file:///etc/secret",
    "0123456789abcdef/../../secret",
    "0123456789abcdef\n",
    "0123456789ABCDEF",
    "0123456789abcde",
)


@pytest.fixture
def registered(here: Path, make_model) -> Path:
    """A project with version 1 as champion."""
    make_model(1)
    register()
    return here


def set_tag(name: str, value: str) -> str:
    """Change a tag of version 1 and its run, as anybody with write access can; return the run's id."""
    client = connect()
    run_id = client.get_model_version(NAME, "1").run_id
    client.set_model_version_tag(NAME, "1", name, value)
    client.set_tag(run_id, name, value)
    return run_id


@pytest.fixture
def no_downloads(monkeypatch):
    """Fail if a file is requested from MLflow."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda *_: pytest.fail("a file was requested"))


@pytest.mark.parametrize("value", HOSTILE)
def test_only_hex_digits_are_a_digest(value):
    with pytest.raises(DiffctlError, match=r"^the tag: expected 16 hex digits[^\n]*$"):
        check_digest(value, 16, "the tag")


def test_hostile_card_and_sha256_are_refused_before_any_request(registered, no_downloads):
    run_id = set_tag(keys.CARD, HOSTILE[0])
    fetches = [lambda: fetch_scores_of(NAME)]
    fetches += [lambda: fetch_version_files(NAME, 1), ChampionSource(NAME).fetch]
    for fetch in fetches:
        with pytest.raises(DiffctlError, match=keys.CARD):
            fetch()
    set_tag(keys.FILE_SHA256, HOSTILE[0])
    for fetch in (lambda: fetch_champion(NAME), lambda: fetch_model(run_id), lambda: model_of_run(run_id)):
        with pytest.raises(DiffctlError, match=keys.FILE_SHA256):
            fetch()
    assert not [path for path in (registered / MODEL_RUNS).rglob("*") if path.is_file()]
