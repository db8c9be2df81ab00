"""YAML as plain values: what YAML 1.2 says, and one line for what is not read."""

import json
import math
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.system.plain_yaml import DEEPEST, YamlRefusal, parse_yaml
from tests.fuzz.mutators import mutate

WORDS = st.text(st.characters(max_codepoint=0xD7FF), min_size=1, max_size=8)  # JSON escapes others in pairs
NUMBERS = st.integers(-(10**90), 10**90) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.dictionaries(
    WORDS,
    st.recursive(
        st.none() | st.booleans() | NUMBERS | WORDS | st.just(""),
        lambda below: st.lists(below, max_size=4) | st.dictionaries(WORDS, below, max_size=4),
        max_leaves=12,
    ),
    max_size=4,
)


@given(TREES)
def test_every_json_document_means_the_same(tree: dict[str, object]) -> None:
    assert parse_yaml(json.dumps(tree)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0", 0), ("-7", -7), ("+7", 7), ("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("2E4", 2e4),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("0x10", "0x10"), ("0b1", "0b1"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"), ("true", True), ("False", False),
        ("~", None), ("", None), ("null", None), ("'1'", "1"), ('"true"', "true"), ("=", "="), ("<<", "<<"),
        (".inf", math.inf), ("-.INF", -math.inf), ("9" * 5000, "9" * 5000), ("9" * 100, 10**100 - 1),
    ],
)  # fmt: skip
def test_a_scalar_means_what_stands_there(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\n\na: 3\n", "a stands twice, in lines 1 and 4"),
        ("s:\n  a: 1\n  a: 1\n", r"s\.a stands twice, in lines 2 and 3"),
        ("s: 1\n's': 2", "s stands twice, in lines 1 and 2"),
        ("a: [{b: 1, b: 2}]", r"a\.0\.b stands twice, in lines 1 and 1"),
        ("a: &x 1\nb: *x", "line 1: anchors and aliases"),
        ("a: *x", "line 1: anchors and aliases"),
        ("&x a: 1", "line 1: anchors and aliases"),
        ("a: !!python/object/apply:os.system ['id']", "line 1: tags"),
        ("a: !!int '12'", "line 1: tags"),
        ("a: ! 12", "line 1: tags"),
        ("[1]: 2", "line 1: a key is a word"),
        ("{a: 1}: 2", "line 1: a key is a word"),
        ("? \n: 2", "line 1: a key is a word"),
        ("a:\n\tb: 1", "line 2: found character '.t' that cannot start any token"),
        ("a: 1\n---\na: 2", "line 2: but found another document"),
        ('a: "\\ud800"', "line 1: an escape in it stands for no character"),
        ("a: \x00", r"character 4 is U\+0000"),
        ("a: [1", "line 1: "),
        ("[" * 3000 + "]" * 3000, f"line 1: it is nested more than {DEEPEST} levels deep"),
        ("a: [" + "1," * 5000 + "]", "line 1: it has more than 5,000 values and keys"),
        ("- " * 3000, f"line 1: it is nested more than {DEEPEST} levels deep"),
        ("%YAML 9.9\n---\na: 1", "line 1: found incompatible YAML document"),
    ],
)  # fmt: skip
def test_what_misleads_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(YamlRefusal, match=why):
        parse_yaml(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(end: str) -> None:
    text = "# a comment\ns:\n  a: 1\n  b: [1, x]\n"
    assert parse_yaml("\ufeff" + text.replace("\n", end)) == {"s": {"a": 1, "b": [1, "x"]}}


def test_the_text_itself_is_not_told() -> None:
    for text in ("password: hunter2: x", "hunter2\n\thunter2: [", "'hunter2", "a: {hunter2", "@hunter2"):
        with pytest.raises(YamlRefusal) as refusal:
            parse_yaml(text)
        assert "hunter2" not in str(refusal.value)


@given(st.randoms(use_true_random=False))
def test_broken_text_is_values_or_one_refusal(rng: random.Random) -> None:
    seeds = [b"a:\n  b: [1, 2.5, x]\n  'c d': {e: null}\n# f\ng: |\n  h\n  i\n", b'{a: [b, {c: "\\x41"}]}']
    text = mutate(rng, seeds, most=4096).decode("utf-8", "replace")
    with suppress(YamlRefusal):
        json.dumps(parse_yaml(text))
