"""params.yaml of any shape: a Config, or one line with file and field; and `check` takes what loads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.check import check
from diffusion.config import Config, load, parse
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from diffusion.train import step_memory
from tests.conftest import params
from tests.helpers.broken_params import CLASSIFIER, Place, Tree, broken_texts, broken_trees, places, read
from tests.helpers.sections import bounds, numbers

MOST_BUILT = 2  # networks that `check` builds: to count the weights, and to see what a pass keeps

few = settings(max_examples=15)  # each takes a whole check


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


@given(broken_texts())
def test_yaml_that_no_values_make_is_a_config_or_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    read(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xfea\x00", "is not UTF-8 text at byte 1"),
        ("data: é".encode("latin-1"), "is not UTF-8 text at byte 7"),
        (b"#" * 70_000, "has more than 65,536 bytes"),
        (b"", "has no sections"),
        (b"- a\n- b\n", "has no sections"),
        (b"data: {}\ndata: {}\n", "data occurs twice, in lines 1 and 2"),
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


def test_a_number_beyond_its_bounds_is_refused() -> None:
    accepted = []
    for path in FIELDS:
        least, greatest = NUMERIC[path]
        for value in (least - 1, greatest * 2 + 1, True, "x"):
            try:
                parse(replaced(BASE, path, value), "params.yaml")
            except UsageError as error:
                assert path.removesuffix("[]").split(".")[0] in str(error)  # noqa: PT017
            else:
                accepted.append((path, value))
    assert not accepted


@pytest.mark.parametrize("value", [False, [1], {}, 2**63, 10**99, float("nan")])
def test_what_is_no_usable_number_is_refused(value: Any) -> None:
    for path in ("train.steps", "train.lr.rate", "sweep.eta[]"):
        with pytest.raises(UsageError, match=path.split(".")[0]):
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
    step_memory._counted_parameters.cache_clear()
    step_memory._counted_passes.cache_clear()
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


@few
@given(st.dictionaries(st.sampled_from(FIELDS), st.booleans(), min_size=2, max_size=8))
def test_check_accepts_the_extremes_of_several_numbers(
    tmp_path: Path, built: list[Any], ends: dict[str, bool]
) -> None:
    tree = BASE
    for path, greatest in ends.items():
        tree = replaced(tree, path, NUMERIC[path][greatest])
    checked(tree, tmp_path, built)


@few
@given(broken_trees())
def test_check_accepts_every_changed_profile_that_loads(
    tmp_path: Path, built: list[Any], broken: tuple[Tree, Place]
) -> None:
    checked(broken[0], tmp_path, built)


@pytest.mark.parametrize("end", [0, 1], ids=["least", "greatest"])
def test_check_accepts_each_extreme(tmp_path: Path, built: list[Any], end: int) -> None:
    for path in FIELDS:
        checked(replaced(BASE, path, NUMERIC[path][end]), tmp_path, built)


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
