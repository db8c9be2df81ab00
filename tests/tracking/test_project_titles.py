"""Projects with own pictures in one registry: titles, and champions that were trained on other images."""

import re
import shutil
from pathlib import Path

import pytest

from diffusion.config import load, parse
from diffusion.data.prepare import prepare
from diffusion.layout import MODEL, MODEL_RUNS, PREPARED
from diffusion.system.errors import DiffctlWarning, UsageError
from tests.conftest import params, write_params
from tests.helpers.raw_data import random_images, write_numbered
from tests.tracking.test_promotion import run
from tracking import keys
from tracking.keys import read_project
from tracking.registry.registered_models import (
    champion_model,
    champion_version,
    fetch_version_files,
    project_model,
    register,
)
from tracking.store import connect


@pytest.fixture
def take(here, make_model):
    """A function that prepares images of a folder and makes a model of them, with a kernel distance."""

    def take_images(path: str, images, kernel: float, **tracking: str) -> None:
        write_numbered(here / path, images, "ab")
        write_params(
            here,
            data={"name": "image-folder", "path": path, "image_size": 8, "channels": 1},
            tracking=tracking,
        )
        prepare(load().data, PREPARED, work=Path("work"))
        make_model(int(1000 * kernel), {(2, 0.0): kernel}, store=PREPARED / "train", data="image-folder")

    return take_images


@pytest.mark.slow
def test_champion_of_other_images_is_refused_and_that_of_an_earlier_state_is_not(take, here):
    pool = random_images(0, 120, 8)
    take("pictures/cats", pool[:20], 0.3)
    assert (register().name, champion_model(force=False)) == ("diffctl-cats", "diffctl-cats")
    tags = connect().get_model_version("diffctl-cats", "1").tags
    assert [len(tags[key]) for key in (keys.DATA_DIGEST, keys.DATA_SAMPLE)] == [64, 20 * 8]
    take("pictures/cats", pool[:50], 0.2)
    assert champion_model(force=False) == "diffctl-cats", "the data have grown"
    assert register().champion == 2
    take("dogs", pool[50:], 0.1, title="cats")
    refused = "version 2 of diffctl-cats was trained on other images, 0% of which are in data/prepared"
    for command in (["sample", "--out", "x.png"], ["sweep"]):
        assert str(run(*command, "--champion").exception).startswith(refused)
    assert run("sample", "--champion", "--force", "--num", "1", "--out", "x.png").exit_code == 0
    decision = register()
    assert (decision.champion, decision.passed) == (2, False)
    assert f"{refused}: set tracking.title" in decision.reason
    assert run("promote", "--force", "--reason", "these are better cats").exit_code == 0
    take("dogs", pool[50:], 0.4)
    assert (register().name, champion_version("diffctl-dogs")) == ("diffctl-dogs", 1)
    shutil.rmtree(PREPARED)
    write_params(here, data={"name": "image-folder", "path": "pictures/cats", "image_size": 8})
    assert champion_model(force=False) == "diffctl-cats", "without prepared data every champion is sampled"


@pytest.mark.slow
def test_champion_under_an_earlier_name_is_found_by_the_path_of_its_training(take):
    take("cats", random_images(0, 20, 8), 0.3)
    client = connect()
    run_id = client.get_model_version(register().name, "1").run_id
    client.rename_registered_model("diffctl-cats", "diffctl-image-folder")
    assert project_model() == "diffctl-cats", "another project's"
    client.log_param(run_id, "data.path", "old/cats")
    with pytest.warns(
        DiffctlWarning, match="rename that model to diffctl-cats in MLflow, or set tracking.title"
    ):
        assert project_model() == "diffctl-image-folder"
    take("cats", random_images(1, 20, 8), 0.2, title="image-folder")
    assert project_model() == "diffctl-image-folder"
    client.rename_registered_model("diffctl-image-folder", "diffctl-cats")
    take("cats", random_images(1, 20, 8), 0.2)
    assert champion_version(project_model()) == 1


def test_title_is_in_no_recorded_setting_and_is_a_name_that_mlflow_accepts(here):
    assert parse(params(tracking={"title": "a"}), "it").model_dump() == parse(params(), "it").model_dump()
    for data, title in (
        ({"name": "hf", "path": "/a/my pictures: 1"}, "my-pictures-1"),
        ({"path": "a"}, "digits"),
    ):
        write_params(here, data=data)
        assert read_project().title == title
    with pytest.raises(UsageError, match=re.escape("tracking.title")):
        parse(params(tracking={"title": "a/b"}), "it")


@pytest.mark.slow
def test_stopped_registration_under_another_title_removes_only_its_own_files(here, make_model, monkeypatch):
    from mlflow.tracking import MlflowClient

    make_model(1)
    first = register().name
    write_params(here, tracking={"title": "renamed"})
    log_artifacts = MlflowClient.log_artifacts

    def stop(*arguments) -> None:
        log_artifacts(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", stop)
        with pytest.raises(KeyboardInterrupt):
            register()
    assert len(list(here.glob("mlartifacts/**/registered/*"))) == 1
    second = register().name
    assert (first, second) == ("diffctl-digits", "diffctl-renamed")
    for name in (first, second):
        shutil.rmtree(MODEL_RUNS, ignore_errors=True)
        assert fetch_version_files(name).files.model.read_bytes() == MODEL.read_bytes()
