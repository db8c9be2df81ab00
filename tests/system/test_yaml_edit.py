"""One value set in a person's YAML: it is there, and nothing else has changed."""

from copy import deepcopy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.system.plain_yaml import YamlRefusal, parse_yaml
from diffusion.system.yaml_edit import with_value
from tests.conftest import ROOT

PATH = ("train", "start", "sha256")
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
WORDS = st.text("abcxyz", min_size=1, max_size=4)
TREES = st.recursive(
    st.integers() | st.booleans() | WORDS | st.none(),
    lambda below: st.dictionaries(WORDS, below, min_size=1, max_size=3) | st.lists(below, max_size=2),
)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_in_every_profile_comments_and_all_else_stay(profile):
    text = profile.read_text()
    edited = with_value(text, PATH, "0" * 64)
    wanted = parse_yaml(text)
    wanted["train"]["start"] = {"sha256": "0" * 64}
    assert parse_yaml(edited) == wanted
    lines = edited.splitlines()
    assert [line for line in lines if "start: {sha256" not in line] == text.splitlines()
    assert with_value(edited, PATH, "1" * 64) == edited.replace("0" * 64, "1" * 64)
    without = with_value(edited, PATH[:-1], None)
    assert parse_yaml(without)["train"]["start"] is None
    assert with_value(without, PATH, "0" * 64) == edited


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train: {steps: 1}\n", 'train: {start: {sha256: "x"}, steps: 1}\n'),
        ("train:\n  start:\n  steps: 1\n", 'train:\n  start: {sha256: "x"}\n  steps: 1\n'),
        ("train:\n  start: # none yet\n", None),
        (
            "train:\n  start:\n    sha256: y  # digits\n    freeze: [stem]\n  # the rest\n  steps: 1\n",
            'train:\n  start:\n    sha256: "x"  # digits\n    freeze: [stem]\n  # the rest\n  steps: 1\n',
        ),
    ],
)
def test_in_any_style(text, wanted):
    edited = with_value(text, PATH, "x")
    assert parse_yaml(edited)["train"]["start"]["sha256"] == "x"
    assert wanted is None or edited == wanted


@pytest.mark.parametrize("text", ["", "train: [1]\n", "other: {a: 1}\ntrain: 3\n", "train: {start: {}}\n"])
def test_where_it_has_no_place_it_is_refused_and_says_what_to_write(text):
    with pytest.raises(YamlRefusal, match=r'write train: \{start: \{sha256: "x"\}\} by hand'):
        with_value(text, PATH, "x")


@settings(deadline=None)
@given(st.dictionaries(WORDS, TREES, min_size=1, max_size=3), st.lists(WORDS, min_size=1, max_size=3))
def test_of_any_values_it_changes_that_one_or_refuses(values, path):
    text = yaml.safe_dump(values, default_flow_style=None)
    try:
        edited = with_value(text, path, "new")
    except YamlRefusal:
        return
    found = parse_yaml(edited)
    place, before = found, deepcopy(values)
    for key in path[:-1]:
        place = place[key]
        before = before.get(key) if isinstance(before, dict) else None
    assert place.pop(path[-1]) == "new"
    assert place == {key: one for key, one in (before or {}).items() if key != path[-1]}
