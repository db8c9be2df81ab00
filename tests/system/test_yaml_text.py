"""YAML 1.2 as plain values, refusals with a line, and edits that keep comments."""

import json
import math
from copy import deepcopy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffusion.system.params import MAX_DEPTH, YamlRefusal, edit_yaml, parse_yaml
from tests.conftest import ROOT

PATH = ("train", "init_from", "sha256")
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
KEYS = st.text(st.characters(max_codepoint=0xD7FF), min_size=1, max_size=8)  # JSON escapes others in pairs
NUMBERS = st.integers(-(10**90), 10**90) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.none() | st.booleans() | NUMBERS | KEYS | st.just(""),
        lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4),
        max_leaves=12,
    ),
    max_size=4,
)
SIMPLE_KEYS = st.text("abcxyz", min_size=1, max_size=4)
SIMPLE_TREES = st.recursive(
    st.integers() | st.booleans() | SIMPLE_KEYS | st.none(),
    lambda below: st.dictionaries(SIMPLE_KEYS, below, min_size=1, max_size=3) | st.lists(below, max_size=2),
)


@given(TREES)
def test_json_documents_are_read_as_json(tree: dict[str, object]) -> None:
    assert parse_yaml(json.dumps(tree)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0", 0), ("-7", -7), ("+7", 7), ("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("2E4", 2e4),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("9" * 100, 10**100 - 1),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"), ("true", True), ("False", False),
        ("~", None), ("", None), ("null", None), ("'1'", "1"), ('"true"', "true"), ("=", "="), ("<<", "<<"),
        (".inf", math.inf), ("-.INF", -math.inf),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\n\na: 3\n", "a occurs twice, in lines 1 and 4"),
        ("a: [{b: 1, 'b': 2}]", "b occurs twice, in lines 1 and 1"),
        ("a: &x 1\nb: *x", "line 1: anchors and aliases"),
        ("a: !!python/object/apply:os.system ['id']", "line 1: tags"),
        ("a: !!int '12'", "line 1: tags"),
        ("[1]: 2", "line 1: a key must be a word"),
        ("? \n: 2", "line 1: a key must be a word"),
        ("a:\n\tb: 1", "line 2: "),
        ("a: 1\n---\na: 2", "line 2: but found another document"),
        ("a: " + "9" * 5000, "it is not valid YAML"),
        ("a: \x00", "character 4 is not allowed"),
        ("a: [1", "line 1: "),
        ("[" * 3000 + "]" * 3000, f"line 1: it is nested more than {MAX_DEPTH} levels deep"),
        ("a: [" + "1," * 5000 + "]", "line 1: it has more than 5,000 values and keys"),
    ],
)
def test_refusals_have_a_line(text: str, why: str) -> None:
    with pytest.raises(YamlRefusal, match=f"^{why}"):
        parse_yaml(text)


def test_keys_are_text_and_other_line_ends_and_a_byte_order_mark_are_accepted() -> None:
    assert parse_yaml("{1: a, no: b, <<: {c: d}}") == {"1": "a", "no": "b", "<<": {"c": "d"}}
    text = "# a comment\ns:\n  a: 1\n  b: [1, x]\n"
    assert parse_yaml("\ufeff" + text.replace("\n", "\r\n")) == {"s": {"a": 1, "b": [1, "x"]}}


@pytest.mark.parametrize(
    "text", ["password: hunter2: x", "hunter2\n\thunter2: [", "'hunter2", "{hunter2", "@hunter2"]
)
def test_refusals_do_not_quote_the_text(text: str) -> None:
    with pytest.raises(YamlRefusal) as refusal:
        parse_yaml(text)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_edit_keeps_all_other_lines_of_a_profile(profile):
    text = profile.read_text()
    edited = edit_yaml(text, PATH, "0" * 64)
    expected = parse_yaml(text)
    expected["train"]["init_from"] = {"sha256": "0" * 64}
    assert parse_yaml(edited) == expected
    new = {"  init_from:", f"    sha256: '{'0' * 64}'"}
    assert [line for line in edited.splitlines() if line not in new] == text.splitlines()
    assert edit_yaml(edited, PATH, "1" * 64) == edited.replace("0" * 64, "1" * 64)
    without = edit_yaml(edited, PATH[:-1], None)
    assert parse_yaml(without)["train"]["init_from"] is None
    assert edit_yaml(without, PATH, "0" * 64) == edited


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {steps: 1}\n", "train: {init_from: {sha256: x}, steps: 1}\n"),
        ("train:\n  init_from:\n  steps: 1\n", "train:\n  init_from:\n    sha256: x\n  steps: 1\n"),
        ("train:\n  init_from: # none yet\n", "train:\n  init_from: # none yet\n    sha256: x\n"),
        (
            "train:\n  init_from:\n    sha256: y  # digits\n    freeze: [stem]\n  # the rest\n  steps: 1\n",
            "train:\n  init_from:\n    sha256: x  # digits\n    freeze: [stem]\n  # the rest\n  steps: 1\n",
        ),
        ("# top\nother: {a: 1}\n", "# top\ntrain:\n  init_from:\n    sha256: x\nother: {a: 1}\n"),
    ],
)
def test_edit_keeps_style_and_comments(text, expected):
    assert edit_yaml(text, PATH, "x") == expected


@pytest.mark.parametrize(
    "text", ["", "train: [1]\n", "train: 3\n", "train:\n  init_from:\n    sha256:\n    - 1  # one\n    - 2\n"]
)
def test_edit_that_cannot_keep_the_rest_is_refused(text):
    with pytest.raises(YamlRefusal, match=r'^train.init_from.sha256 cannot be set to "x" in it: edit'):
        edit_yaml(text, PATH, "x")


@given(
    st.dictionaries(SIMPLE_KEYS, SIMPLE_TREES, min_size=1, max_size=3),
    st.lists(SIMPLE_KEYS, min_size=1, max_size=3),
)
def test_edit_changes_one_value_or_refuses(values, path):
    text = yaml.safe_dump(values, default_flow_style=None)
    try:
        edited = edit_yaml(text, path, "new")
    except YamlRefusal:
        return
    place, before = parse_yaml(edited), deepcopy(values)
    for key in path[:-1]:
        place = place[key]
        before = before.get(key) if isinstance(before, dict) else None
    assert place.pop(path[-1]) == "new"
    assert place == {key: one for key, one in (before or {}).items() if key != path[-1]}
