"""params.yaml of any shape: a Config, or one line with file and field; and `check` takes what loads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion.check import check
from diffusion.config import Config, load, parse
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from diffusion.train import memory
from tests.conftest import params
from tests.helpers.broken_params import CLASSIFIER, Place, Tree, broken_texts, broken_trees, places, read
from tests.helpers.sections import bounds, numbers

MOST_BUILT = 2  # networks that `check` builds: to count the weights, and to see what a pass keeps

SHARED = [HealthCheck.function_scoped_fixture]  # a folder, whose file each example writes anew
many = settings(suppress_health_check=SHARED, deadline=None)
some = settings(suppress_health_check=SHARED, deadline=None, max_examples=15)


@many
@given(broken_trees())
def test_a_changed_profile_is_a_config_or_one_line_with_the_field(
    tmp_path: Path, broken: tuple[Tree, Place]
) -> None:
    tree, place = broken
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    found = read(path)
    if isinstance(found, str):
        assert any(said in found for said in (str(place[0]), "readable as YAML: line", "than 65,536 bytes"))


@many
@given(broken_texts())
def test_yaml_that_no_values_make_is_a_config_or_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    read(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xfea\x00", "is not UTF-8 text: byte 1"),
        ("data: é".encode("latin-1"), "is not UTF-8 text: byte 7"),
        (b"#" * 70_000, "has more than 65,536 bytes"),
        (b"", "holds no sections"),
        (b"- a\n- b\n", "holds no sections"),
        (b"data: {}\ndata: {}\n", "data stands twice, in lines 1 and 2"),
        (b"user: me\npassword: hunter2\n", "has none of the sections data, model"),
    ],
)
def test_a_file_of_another_kind_is_told_without_its_contents(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    said = read(path)
    assert why in str(said)
    assert "hunter2" not in str(said)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 300, "/".join(["x" * 200] * 30), "a\0b", ".", "fifo", "/dev/zero"]
)
def test_what_is_no_file_is_told(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError) as refusal:
        load(tmp_path / name)
    assert len(str(refusal.value)) < 500


def replaced(tree: Tree, path: str, value: Any) -> Tree:
    """The tree with that value in a field; `[]` at its end puts it into a list alone.

    A number above the field, which stands for its section, gives way to the section.
    """
    *above, name = path.removesuffix("[]").split(".")
    changed = json.loads(json.dumps(tree))
    holder = changed
    for key in above:
        if not isinstance(holder.get(key), dict):
            holder[key] = {}
        holder = holder[key]
    holder[name] = [value] if path.endswith("[]") else value
    return changed


NUMERIC = {part.path: bounds(part.schema) for part in numbers(Config)}
FIELDS = sorted(NUMERIC)
BASE = {**params(), "classifier": CLASSIFIER}


@pytest.mark.parametrize("path", FIELDS)
def test_no_number_is_beyond_its_bounds_or_a_truth(path: str) -> None:
    least, greatest = NUMERIC[path]
    for value in (least - 1, greatest * 2 + 1, True, False, "x", [1], {}, 2**63, 10**99, float("nan")):
        with pytest.raises(UsageError, match=path.removesuffix("[]").split(".")[0]):
            parse(replaced(BASE, path, value), "params.yaml")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of the networks that are built from now on."""
    shapes: list[Any] = []
    build = UNet.__init__

    def noted(network: UNet, spec: UNetSpec) -> None:
        shapes.append(spec)
        build(network, spec)

    monkeypatch.setattr(UNet, "__init__", noted)
    memory._counted_parameters.cache_clear()
    memory._counted_passes.cache_clear()
    return shapes


def checked(tree: Tree, root: Path, built: list[Any]) -> None:
    """Load it and look at it: findings or a refusal, and few networks."""
    try:
        config = parse(tree, "params.yaml")
    except UsageError:
        return
    del built[:]
    findings = check(config, root)
    assert len(built) <= MOST_BUILT
    for finding in findings:
        assert finding.message.isprintable()
        assert len(finding.message) + len(finding.remedy) < 1000


@pytest.mark.parametrize("path", FIELDS)
def test_what_loads_is_checked_at_the_ends_of_every_number(
    path: str, tmp_path: Path, built: list[Any]
) -> None:
    for value in NUMERIC[path]:
        checked(replaced(BASE, path, value), tmp_path, built)


@some
@given(st.dictionaries(st.sampled_from(FIELDS), st.booleans(), min_size=2, max_size=8))
def test_what_loads_is_checked_at_several_ends_at_once(
    tmp_path: Path, built: list[Any], ends: dict[str, bool]
) -> None:
    tree = BASE
    for path, greatest in ends.items():
        tree = replaced(tree, path, NUMERIC[path][greatest])
    checked(tree, tmp_path, built)


@some
@given(broken_trees())
def test_what_loads_of_a_changed_profile_is_checked(
    tmp_path: Path, built: list[Any], broken: tuple[Tree, Place]
) -> None:
    checked(broken[0], tmp_path, built)


def test_a_network_that_no_machine_trains_is_not_built(tmp_path: Path, built: list[Any]) -> None:
    shape = {"channels": 16_384, "channel_mult": [64, 64], "num_res_blocks": 16, "head_channels": 64}
    findings = check(parse(params(model=shape), "params.yaml"), tmp_path)
    assert [finding.subject for finding in findings if finding.level == "error"] == ["memory"]
    assert built == []


def test_a_typo_in_any_section_names_what_is_allowed() -> None:
    """Also in nested ones, and in those whose class another field chooses."""
    for place in places(BASE):
        holder: Any = BASE
        for key in place:
            holder = holder[key]
        if not isinstance(holder, dict) or place[-1] == "sampler_options":
            continue
        path = ".".join(map(str, place))
        with pytest.raises(UsageError, match=rf"{path}\.tpyo: unknown key, allowed are \w+, \w+"):
            parse(replaced(BASE, f"{path}.tpyo", 1), "params.yaml")
