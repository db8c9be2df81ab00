"""Names in MLflow: of projects with own pictures in one registry, and of a training's run."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

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
from tracking.runs.run_lookup import MAX_NAME_LENGTH, training_name
from tracking.store import connect

PROFILES = Path(__file__).parents[2] / "profiles"
RATE = {"schedule": "cosine", "rate": 0.001, "warmup": 50}


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


def title(profile: str, **fields) -> str:
    """Return the name of a training with other values, given as `section__field`."""
    values = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"))
    for name, value in fields.items():
        section, _, field = name.partition("__")
        values[section][field] = value
    return training_name(parse(values, "test"), PROFILES)


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_unchanged_profile_gives_its_own_name(profile):
    assert training_name(load(PROFILES / f"{profile}.yaml"), PROFILES) == profile


@pytest.mark.slow
def test_name_lists_the_fields_that_differ_from_the_nearest_profile():
    assert title("digits", train__lr=RATE, model__channels=64) == "channels64-lr0.001-digits"
    assert title("digits", model__channel_mult=[1, 2, 2]) == "channel_mult1.2.2-digits"
    assert title("digits", data__flip=True) == "flip+-digits"
    assert title("digits", train__lr=0.002).startswith("scheduleconstant-warmup")
    assert title("digits", train__log_every=7, train__save_every=9, sweep__steps=[5]) == "digits"
    assert title("imagenet64-adm", train__seed=1) == "seed1-imagenet64-adm"
    assert title("imagenet64", train__seed=1) == "seed1-imagenet64"


def test_many_differences_are_counted():
    name = title("digits", train__lr=RATE, train__steps=77, train__batch_size=32, train__seed=5,
                 train__ema_decay=0.9, model__channels=64, train__p_uncond=0.2)  # fmt: skip
    assert len(name) <= MAX_NAME_LENGTH
    assert name.startswith("channels64-steps77-")
    assert re.search(r"-\+[1-4]-digits$", name)


def test_name_without_a_profile_is_the_data_set(tmp_path):
    config = load(PROFILES / "digits.yaml")
    assert training_name(config, tmp_path / "none") == "digits"
    shutil.copy(PROFILES / "cifar10.yaml", tmp_path)
    (tmp_path / "broken.yaml").write_text("data: 5", encoding="utf-8")
    assert training_name(config, tmp_path) == "digits"
