"""params.yaml with any content gives a Config or a one-line error; `check` accepts each that loads.

Every number in it and in commands has bounds, and every list a maximum length.
"""

import inspect
import json
import os
import re
from collections.abc import Iterator
from functools import partial
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
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.model import counted_passes
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.system.errors import UsageError
from diffusion.system.params import load_section, load_sections
from diffusion.train import step_memory
from diffusion.train.train_config import TrainConfig, TrainSections
from tests.conftest import ROOT, params, write_params
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


def test_project_params_equal_the_digits_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "profiles/digits.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"lr": -1}}, "train.lr.rate: .*greater than 0 .*got -1"),
        ({"data": {"name": "mnist"}}, "data.name: allowed are digits, .*got 'mnist'"),
        ({"data": {"labels": "fine"}}, "data.labels: digits has no such option; it belongs to cifar100 and"),
        ({"train": {"lr": {"rate": 1, "warmup": 50}}},
         "train: lr.warmup 50 is more than steps 12: lower train.lr.warmup"),
        ({"sweep": {"steps": list(range(1, 101)), "eta": [x / 100 for x in range(11)]}},
         "sweep: the axes have 1,100 cells together: list at most 1,000"),
        ({"model": {"channel_mult": [1] * 8, "num_res_blocks": 9}}, "72 blocks in all levels are more than"),
        ({"data": {"name": ["digits"]}}, "data.name: it must be text"),
        ({"model": {"heads": 2}}, "head_channels and heads exclude each other"),
        ({"model": {"head_channels": 7}}, "7 does not divide 8 channels"),
        ({"model": {"class_cond": False}}, "p_uncond > 0 drops labels, so it needs model.class_cond"),
        ({"process": {"variance": "small"}}, "loss hybrid needs variance learned"),
        ({"process": {"loss": "simple"}}, "loss simple never trains a learned variance"),
        ({"process": {"variance": "small", "loss": "simple"}, "sample": {"noise": "learned"}},
         "sample.noise learned needs process.variance learned"),
        ({"train": {"p_uncond": 0.0}, "sample": {"guidance": 2.0}}, "guidance > 0 needs a model trained"),
        ({"sweep": {"steps": [10, 2000]}}, "sweep.steps: 2000 sampling steps do not fit: give 1 to 1000"),
        ({"train": {"eval_every": 5, "eval_steps": 300}, "sample": {"spacing": "ddim-uniform"},
          "sweep": {"steps": [50]}},
         "train.eval_steps: ddim-uniform takes S > 1 steps that divide 1000, not 300"),
        ({"sweep": {"steps": [10, 10]}}, "each value may occur once"),
        ({"process": {"schedule": "sigmoid"}}, "process.schedule: allowed are linear, .*got 'sigmoid'"),
        ({"process": {"prediction": "v"}}, "process.prediction: allowed are eps, x0, .*got 'v'"),
        ({"sweep": {"eta": [float("nan")]}}, "sweep.eta.0: .*finite"),
        ({"data": {"image_size": 9}}, "image_size 9 must be divisible by 2"),
        ({"data": {"image_size": 8}, "model": {"attention_resolutions": [3]}},
         r"maps have \[8, 4\] pixels, not \[3\]"),
    ],
)  # fmt: skip
def test_invalid_value_is_refused_with_field_and_allowed_values(changes, message) -> None:
    with pytest.raises(UsageError, match=f"params.yaml: .*{message}") as refusal:
        parse(params(**changes), "params.yaml")
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist: run this in the project's folder"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 64", "batchsize: 64", "train.batchsize: unknown key (did you mean batch_size?)"),
        ("train:", "trian:", "trian: unknown key (did you mean train?), allowed are data"),
        ("steps: 1200", "epochs: 12", "train.epochs: unknown key (did you mean steps?), allowed"),
        ("schedule: cosine, rate", "schedule: cosin, rate", "got 'cosin'; did you mean cosine?)"),
        ("name: digits", "name: Digits", "got 'Digits'; did you mean digits?)"),
        ("noise: small", "noise: smal", "sample.noise: allowed are small, large, learned (got 'smal'; did"),
        ("steps: [5, 10, 20, 50]", "steps: 5", "sweep.steps: it must be a list (got 5)"),
        ("name: digits", "name: digits\n  channels: 2", "data.channels: allowed are 1, 3 (got 2)"),
        ("name: digits", "name:", "data.name: it must be text (got null)"),
        ("steps: 1200", "init_from: {sha256: abc}\n  steps: 12", "sha256: it must match pattern"),
        ("steps: 1200", "init_from: a.b\n  steps: 12", "it must be a section with the keys sha256, freeze"),
        ("steps: 1200", "devices: many\n  steps: 12",
         "train.devices: it must be a whole number, or allowed are auto (got 'many')"),
    ],
)  # fmt: skip
def test_slip_in_a_profile_is_named_with_its_correction(tmp_path, old, new, message) -> None:
    text = (ROOT / "profiles/digits.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError) as refusal:
        load(tmp_path / "params.yaml")
    assert message in str(refusal.value)
    assert not re.search(r"tuple|dict|None|instance|True|Config", str(refusal.value))


def test_invalid_element_of_a_list_is_the_only_problem() -> None:
    with pytest.raises(UsageError, match=r"sweep.steps.1: it must be greater than 0 \(got 0\)$"):
        parse(params(sweep={"steps": [5, 0]}), "params.yaml")
    with pytest.raises(UsageError, match=r"train.steps: [^;]*; sweep.eta.0: [^;]*$"):
        parse(params(sweep={"eta": [-1]}, train={"steps": 0}), "params.yaml")


def test_section_loads_if_other_sections_are_invalid(tmp_path: Path) -> None:
    write_params(tmp_path, evaluate={"confidence_intervals": False}, train={"learning_rate": 1})
    path = tmp_path / "params.yaml"
    assert load_section("evaluate", EvaluateConfig, path) == EvaluateConfig(confidence_intervals=False)
    for loading in (load, partial(load_sections, TrainSections), partial(load_section, "train", TrainConfig)):
        with pytest.raises(UsageError, match=r"params.yaml: train.learning_rate: unknown key .*allowed are"):
            loading(path=path)
    path.write_text("model: {}")
    with pytest.raises(UsageError, match=r"params.yaml: evaluate: it is missing"):
        load_section("evaluate", EvaluateConfig, path)


# Networks that `check` builds: of the model and of the classifier one to count weights, one to count
# activations and one to try, and one to find the largest shard.
MAX_BUILT = 7

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
    counted_passes.count_parameters.cache_clear()
    counted_passes._counted_passes.cache_clear()
    step_memory._largest_unit.cache_clear()
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


@pytest.mark.slow
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
        yield from numeric_options(group.typer_instance, f"{name} {group.name}" if group.name else name)


def test_every_number_of_a_command_has_both_bounds() -> None:
    options = dict(numeric_options(main.app))
    assert {"diffctl sample num", "diffctl sample eta", "diffctl ui port"} <= options.keys()
    assert [name for name, one in options.items() if None in (one.min, one.max)] == []
