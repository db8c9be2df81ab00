import shutil
from pathlib import Path

import pytest
import yaml

from diffusion.config import load, parse
from tracking.titles import MOST, training_title

PROFILES = Path(__file__).parents[2] / "profiles"
RATE = {"course": "cosine", "rate": 0.001, "warmup": 50}


def changed(profile: str, **fields) -> str:
    """The title of a profile with other values, by `section__field`."""
    values = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"))
    for name, value in fields.items():
        section, _, field = name.partition("__")
        values[section][field] = value
    return training_title(parse(values, "test"), PROFILES)


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_a_profile_as_it_stands_gives_its_name(profile):
    assert training_title(load(PROFILES / f"{profile}.yaml"), PROFILES) == profile


def test_what_differs_is_in_the_name():
    assert changed("digits", train__lr=RATE, model__channels=64) == "digits-channels64-lr0.001"
    assert changed("digits", train__seed=3) == "digits-seed3"
    assert changed("digits", model__channel_mult=[1, 2, 2]) == "digits-channel_mult1.2.2"
    assert changed("digits", data__flip=True) == "digits-flip+"
    assert changed("digits", train__lr=0.002).startswith("digits-courseconstant-warmup")


def test_what_decides_nothing_is_left_out():
    assert changed("digits", train__log_every=7, train__save_every=9, sweep__steps=[5]) == "digits"


def test_of_two_profiles_of_one_data_set_the_nearer_one_counts():
    assert changed("imagenet64-adm", train__seed=1) == "imagenet64-adm-seed1"
    assert changed("imagenet64", train__seed=1) == "imagenet64-seed1"


def test_many_differences_are_counted():
    title = changed("digits", train__lr=RATE, train__steps=77, train__batch_size=32, train__seed=5,
                    train__ema_decay=0.9, model__channels=64, train__p_uncond=0.2)  # fmt: skip
    assert len(title) <= MOST
    assert title.startswith("digits-channels64-steps77-")
    assert title.endswith(("-+1", "-+2", "-+3", "-+4"))


def test_without_a_profile_it_is_the_data_set(tmp_path):
    config = load(PROFILES / "digits.yaml")
    assert training_title(config, tmp_path / "none") == "digits"
    shutil.copy(PROFILES / "cifar10.yaml", tmp_path)
    (tmp_path / "broken.yaml").write_text("data: 5", encoding="utf-8")
    assert training_title(config, tmp_path) == "digits"
