"""Shipped profiles with something wrong in them, and what comes of reading one."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from diffusion.config import Config, load
from diffusion.system.errors import UsageError
from diffusion.system.params import read_params
from tests.conftest import ROOT, params

Tree = dict[str, Any]
Place = tuple[str | int, ...]

MAX_MESSAGE = 1000  # characters of a message, without the file's name
PROFILES = {path.stem: read_params(path) for path in sorted((ROOT / "profiles").glob("*.yaml"))}
CLASSIFIER = {  # which no profile has
    "model": {"channels": 8, "channel_mult": [1, 2], "attention_resolutions": [4]},
    "train": {"steps": 12, "batch_size": 8, "lr": {"rate": 0.002}},
}
TREES = [*PROFILES.values(), {**params(), "classifier": CLASSIFIER}]

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**9, 10**12, 10**30, 10**99,
     -(10**99), 0.0, -0.0, 0.5, 1.0, 1e-320, 1e-9, 1e9, 1e308, -1e308, float("nan"), float("inf")]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["", "x", "auto", "none", "ddim", "image-folder", "adm-64", "../..", "~", "\0", "\ud800", "\x1b[2J",
     "a\nb", "1", "1e3", "nan", "true", "é" * 300, "x" * 5000, "/".join(["x" * 200] * 30), "9" * 5000,
     "{" * 5000, '{"a":' * 500]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(TEXTS | st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=6,
) | st.builds(lambda value, size: [value] * size, LEAVES, st.sampled_from([101, 300]))
RAW = (  # YAML that is no JSON
    "!!python/object/apply:os.system [id]", "&a [*a]", "*a", "!!binary aGk=", "2024-01-01", "1:30", "010",
    "0x10", "1_000", "yes", "no", "on", "~", ".nan", "-.inf", "9" * 5000, "[" * 3000,
    "[" * 3000 + "]" * 3000, "{" * 3000, "'", '"', "{a: 1, a: 2}", "{[1]: 2}", "{? x}", "\t", "\0", "#",
    "|\n  x", "- - - 1", "---", "...", "%YAML 3.0", "<<", "@", "`", "a: b: c", "x" * 70_000,
)  # fmt: skip
HOLE = "hole\ue000"


def places(tree: Any, above: Place = ()) -> Iterator[Place]:
    """Return the path of each value except the root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


@st.composite
def broken_trees(draw: st.DrawFn) -> tuple[Tree, Place]:
    """A profile and the place in it that was replaced, dropped, renamed, doubled or nested."""
    tree = deepcopy(draw(st.sampled_from(TREES)))
    place = draw(st.sampled_from(list(places(tree))))
    holder: Any = tree
    for key in place[:-1]:
        holder = holder[key]
    key, value = place[-1], holder[place[-1]]
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "double", "nest"]))
    if how == "replace":
        holder[key] = draw(VALUES)
    elif how == "nest":
        holder[key] = draw(st.sampled_from([{key: value}, [value], [[value]]]))
    elif isinstance(holder, list):
        holder.insert(0, value)
    else:
        if how != "double":
            del holder[key]
        if how != "drop":
            holder[draw(st.sampled_from([f"{key}s", str(key).upper(), f" {key}", "0"]))] = value
    return tree, place


@st.composite
def broken_texts(draw: st.DrawFn) -> str:
    """As `broken_trees`, with YAML in the place that no values make."""
    tree = deepcopy(draw(st.sampled_from(TREES)))
    place = draw(st.sampled_from(list(places(tree))))
    holder: Any = tree
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = HOLE
    return json.dumps(tree, ensure_ascii=False, indent=1).replace(f'"{HOLE}"', draw(st.sampled_from(RAW)))


def read(path: Path) -> Config | str:
    """The Config of a file, or how it is refused: one line of some hundred characters that names the file."""
    try:
        return load(path)
    except UsageError as refusal:
        message = str(refusal)
        assert message.startswith(str(path)), message
        assert message.isprintable(), message
        assert len(message) < MAX_MESSAGE + len(str(path)), message
        return message
