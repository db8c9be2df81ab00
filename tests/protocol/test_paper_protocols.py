"""Paper protocols: every stated field exists, and each mismatch contains both values."""

import pytest

from diffusion.check import check_protocol
from diffusion.check.findings import Project
from diffusion.config import Config, parse
from diffusion.process.process_registry import DiscreteConfig
from diffusion.protocol.paper_mismatches import mismatches
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.report.page_content import protocol_mismatches
from tests.conftest import params

# Runs with the settings of each paper, except for settings that params.yaml does not have.
LINEAR = {"schedule": "linear", "timesteps": 1000}
ZERO_SNR = {"zero_terminal_snr": True, "prediction": "velocity"}
AS_DDIM = {
    "data": {"name": "cifar10"},
    "model": {"class_cond": False},
    "train": {"p_uncond": 0.0},
    "process": {**LINEAR, "variance": "small", "loss": "simple", "prediction": "eps"},
    "sample": {"num_images": 50_000, "spacing": "ddim-quadratic", "noise": "small", "clip": False},
    "sweep": {"steps": [10, 20, 50, 100], "eta": [0.0, 0.2, 0.5, 1.0]},
    "evaluate": {"extractor": "inception-v3-compat", "protocol": "ddim"},
}
AS_ADM = {
    "data": {"name": "imagenet64"},
    "process": {"schedule": "cosine", "variance": "learned", "loss": "hybrid", "prediction": "eps"},
    "sample": {"num_images": 50_000, "noise": "learned"},
    "sweep": {"steps": [250], "eta": [1.0]},
    "evaluate": {
        "extractor": "inception-v3-compat",
        "protocol": "adm",
        "prc_samples": 50_000,
        "statistics": {"file": "references/VIRTUAL_imagenet64_labeled.npz", "sha256": "0" * 64},
    },
}


def config(base, **changes):
    """Return a config of these sections and changes, with the other sections from `params`."""
    values = params()
    values["data"] = {}
    for section in (*base, *changes):
        values[section] = {**values[section], **base.get(section, {}), **changes.get(section, {})}
    return parse(values, "test")


def config_mismatches(made):
    return mismatches(made.evaluate.protocol, made.model_dump(mode="json"))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_stated_field_is_in_params_yaml_and_has_a_source(name):
    for stated in PROTOCOLS[name].states:
        section, key = stated.field.split(".")
        kinds = [Config.model_fields[section].annotation, DiscreteConfig]
        assert any(key in kind.model_fields for kind in kinds), stated.field
        assert stated.source
        assert stated.values


@pytest.mark.parametrize("base", [AS_DDIM, AS_ADM])
def test_run_with_the_papers_settings_has_no_mismatch(base):
    assert config_mismatches(config(base)) == []


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        (AS_DDIM, {"sample": {"clip": True}}, "sample.clip"),
        (AS_DDIM, {"sweep": {"spacing": ["ddim-quadratic", "trailing"]}}, "sample.spacing"),
        (AS_DDIM, {"sweep": {"eta": [0.0, 0.7]}}, "sweep.eta"),
        (AS_DDIM, {"process": {"schedule": "cosine"}}, "process.schedule"),
        (AS_DDIM, {"model": {"class_cond": True}}, "model.class_cond"),
        (AS_DDIM, {"process": ZERO_SNR}, "process.zero_terminal_snr"),
        (AS_ADM, {"process": {"t_sampler": "loss-aware"}}, "process.t_sampler"),
        (AS_ADM, {"sample": {"classifier": "classifier.safetensors"}}, "sample.classifier"),
        (AS_ADM, {"evaluate": {"prc_samples": None}}, "evaluate.prc_samples"),
    ],
)
def test_another_value_of_a_stated_field_is_a_mismatch(base, changes, field):
    found = {one.field: one.paper for one in config_mismatches(config(base, **changes))}
    assert set(found) - {"process.prediction"} == {field}
    assert all(found.values())


def test_mismatch_contains_the_values_of_paper_and_run_and_check_warns_of_it():
    made = config(AS_DDIM, sample={"num_images": 1000}, sweep={"steps": [10, 25]})
    images, steps = config_mismatches(made)
    assert images[:3] == ("sample.num_images", "50,000", "1,000")
    assert steps[:3] == ("sweep.steps", "10 or 20 or 50 or 100", "25")
    found = list(check_protocol(Project(made)))
    assert [one.level for one in found] == ["warning", "warning", "ok", "ok"]
    assert found[0].message == str(images)
    assert images.source in str(images)
    assert [one.level for one in check_protocol(Project(config(AS_DDIM)))] == ["ok", "ok", "ok"]
    (found,) = config_mismatches(config(AS_ADM, evaluate={"statistics": None}))
    assert str(found).startswith("evaluate.statistics is not set, and the paper has VIRTUAL_imagenet64")


def test_no_protocol_gives_no_findings():
    made = config(AS_DDIM, evaluate={"protocol": None})
    assert list(check_protocol(Project(made))) == []
    assert protocol_mismatches(made) is None


@pytest.mark.parametrize(
    ("data", "churn", "steps"),
    [
        ("cifar10", {}, 18),
        ("imagenet64", {"s_churn": 40, "s_tmin": 0.05, "s_tmax": 50, "s_noise": 1.003}, 256),
    ],
)
def test_options_are_compared_without_their_defaults(data, churn, steps):
    base = {
        "data": {"name": data},
        "sample": {"sampler": "heun", "sampler_options": churn, "spacing": "karras", "clip": False},
        "sweep": {"steps": [steps], "eta": [0.0]},
        "evaluate": {"protocol": "edm"},
    }
    fields = {one.field for one in config_mismatches(config(base))}
    assert not {field for field in fields if field.startswith(("sample.s", "sweep."))}
    made = config(base, sample={"sampler_options": {"path": "noise-level", "s_churn": 9.0}})
    found = {one.field: one.here for one in config_mismatches(made)}
    assert found["sample.sampler_options"] == "{'s_churn': 9.0}"
