"""params.yaml with any content gives a Config or a one-line error; `check` accepts each that loads.

Also every number in it and in commands has bounds, and every list a maximum length.
"""

import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cli import main
from diffusion.check import check
from diffusion.config import Config, load, parse
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from diffusion.train import step_memory
from tests.conftest import params
from tests.helpers.broken_params import (
    CLASSIFIER,
    Tree,
    bounds,
    broken_profile,
    numbers,
    parts,
    places,
    read,
    section_classes,
)

MAX_BUILT = 2  # networks that `check` builds: to count weights, and to count activations

BASE = {**params(), "classifier": CLASSIFIER}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("data: é".encode("latin-1"), "is not readable as YAML: .*decode byte 0xe9"),
        (b"#" * 70_000, "is not readable as YAML: larger than 0.1 MB"),
        (b"- a\n- b\n", "has no sections"),
        (b"data: {}\ndata: {}\n", "data occurs twice, in lines 1 and 2"),
        (b"user: me\npassword: hunter2\n", "has none of the sections data, model"),
    ],
)
def test_other_kind_of_file_is_refused_without_quoting_it(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    message = read(path)
    assert re.search(why, str(message))
    assert "hunter2" not in str(message)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "a\0b", ".", "fifo", "/dev/zero"])
def test_path_that_is_not_a_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError) as refusal:
        load(tmp_path / name)
    assert len(str(refusal.value)) < 500


def with_value(tree: Tree, path: str, value: Any) -> Tree:
    """Return the tree with the value in a field; a path with `[]` at its end sets a list of the value.

    A number in place of a section above the field is replaced by the section.
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


def test_number_outside_its_bounds_is_refused() -> None:
    accepted = []
    for path in FIELDS:
        least, greatest = NUMERIC[path]
        for value in (least - 1, greatest * 2 + 1, True, "x", {}, 10**99, float("nan")):
            try:
                parse(with_value(BASE, path, value), "params.yaml")
            except UsageError as error:
                assert path.removesuffix("[]").split(".")[0] in str(error)  # noqa: PT017
            else:
                accepted.append((path, value))
    assert not accepted


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The specs of the networks that are built during the test, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    shapes: list[Any] = []
    build = UNet.__init__

    def record_spec(network: UNet, spec: UNetSpec) -> None:
        shapes.append(spec)
        build(network, spec)

    monkeypatch.setattr(UNet, "__init__", record_spec)
    step_memory.count_parameters.cache_clear()
    step_memory._counted_passes.cache_clear()
    return shapes


def assert_checked(config: Config, built: list[Any]) -> None:
    """Check a configuration: messages are short, and few networks are built."""
    del built[:]
    findings = list(check(config))
    assert len(built) <= MAX_BUILT
    for finding in findings:
        assert finding.message.isprintable()
        assert len(finding.message) + len(finding.remedy) < 1000


@settings(max_examples=15)  # each runs a complete check
@given(st.randoms(use_true_random=False))
def test_check_accepts_every_broken_profile_that_loads(tmp_path: Path, built: list[Any], rng: Random) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(broken_profile(rng))
    if isinstance(config := read(path), Config):
        assert_checked(config, built)


@pytest.mark.parametrize("end", [0, 1], ids=["least", "greatest"])
def test_check_accepts_each_extreme(built: list[Any], end: int) -> None:
    for path in FIELDS:
        try:
            config = parse(with_value(BASE, path, NUMERIC[path][end]), "params.yaml")
        except UsageError:
            continue
        assert_checked(config, built)


def test_network_too_large_for_any_machine_is_not_built(built: list[Any]) -> None:
    shape = {"channels": 16_384, "channel_mult": [64, 64], "num_res_blocks": 16, "head_channels": 64}
    findings = check(parse(params(model=shape), "params.yaml"))
    assert [finding.subject for finding in findings if finding.level == "error"] == ["memory"]
    assert built == []


def test_typo_in_any_section_lists_the_allowed_keys() -> None:
    """Also in nested sections, and in sections with a class that another field selects."""
    for place in places(BASE):
        holder: Any = BASE
        for key in place:
            holder = holder[key]
        if not isinstance(holder, dict) or place[-1] in ("sampler_options", "spacing_options"):
            continue
        path = ".".join(map(str, place))
        with pytest.raises(UsageError, match=rf"{path}\.tpyo: unknown key.*, allowed are \w+, \w+"):
            parse(with_value(BASE, f"{path}.tpyo", 1), "params.yaml")


@pytest.mark.parametrize("kind", section_classes(), ids=lambda kind: kind.__name__)
def test_numbers_of_a_section_have_both_bounds_and_lists_a_maximum_length(kind: type[BaseModel]) -> None:
    unbounded = [part.path for part in numbers(kind) if None in bounds(part.schema)]
    assert not unbounded, (
        "give it `ge` or `gt`, and `le` or `lt`: diffusion/system/section.py has types for most"
    )
    lists = [part for part in parts(kind) if part.schema.get("type") == "array"]
    assert [part.path for part in lists if "maxItems" not in part.schema] == []


def numeric_options(app: typer.Typer, name: str = "diffctl") -> Iterator[tuple[str, Any]]:
    """Yield every numeric parameter of the commands as `command parameter`, with its typer option."""
    for command in app.registered_commands:
        assert command.callback is not None
        called = f"{name} {command.name or command.callback.__name__}"
        for parameter, declared in inspect.signature(command.callback).parameters.items():
            hint = declared.annotation
            if get_origin(hint) is Annotated and {int, float} & {hint.__origin__, *get_args(hint.__origin__)}:
                yield f"{called} {parameter}", hint.__metadata__[0]
            else:
                assert hint not in (int, float), f"{called}: give {parameter} bounds"
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from numeric_options(group.typer_instance, f"{name} {group.name}")


def test_every_number_of_a_command_has_both_bounds() -> None:
    options = dict(numeric_options(main.app))
    assert {"diffctl sample num", "diffctl sample eta", "diffctl ui port"} <= options.keys()
    assert [name for name, one in options.items() if None in (one.min, one.max)] == []
