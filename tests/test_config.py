"""params.yaml: refused values and their messages, and fingerprints."""

import re
from functools import partial
from pathlib import Path

import pytest

from diffusion.config import load, parse
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.system.errors import UsageError
from diffusion.system.params import load_section, load_sections
from diffusion.system.section import canonical_json, fingerprint
from diffusion.train.train_config import TrainConfig, TrainSections
from tests.conftest import ROOT, params, write_params


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
        ("name: digits", "name:", "data.name: it must be text (got null)"),
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


def test_fingerprint_does_not_depend_on_order() -> None:
    one, other = {"a": 1, "b": {"c": [2], "d": None}}, {"b": {"d": None, "c": [2]}, "a": 1}
    assert canonical_json(one) == canonical_json(other) == '{"a":1,"b":{"c":[2],"d":null}}'
    assert fingerprint(one) == fingerprint(other) != fingerprint({"a": 1})
