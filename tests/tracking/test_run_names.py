"""The name of a training's run: the nearest profile, and the fields that differ from it."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from diffusion.config import load, parse
from tracking.runs.run_lookup import MAX_NAME_LENGTH, training_name

PROFILES = Path(__file__).parents[2] / "profiles"
RATE = {"schedule": "cosine", "rate": 0.001, "warmup": 50}


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
