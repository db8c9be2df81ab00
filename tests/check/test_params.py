"""The JSON schema of params.yaml, and the section `model` that a pretrained model needs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator

from diffusion.check.params_changes import format_sections, needed_changes, sections_of
from diffusion.check.params_schema import params_schema
from diffusion.config import parse
from diffusion.data.data_config import SOURCES
from diffusion.model.network_registry import ModelConfig
from diffusion.model.presets import PRESETS
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.system.params import parse_yaml
from diffusion.train.plan import plan_training
from diffusion.train.pretrained import PretrainedRefused, store_pretrained
from tests.conftest import ROOT, params
from tests.helpers.networks import artefact_of, small_model, spec_of
from tests.schema import SCHEMA, schema_text

VALIDATOR = Draft202012Validator(params_schema())
FILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]


def problems(**changes: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(params(**changes))]


def test_schema_file_is_up_to_date() -> None:
    current = schema_text(plugins=False)
    assert SCHEMA.read_text(encoding="utf-8") == current, "run `python -m tests.schema --write`"
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_profile_is_valid_and_names_its_schema(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(text)))
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named
    schema = json.loads((file.parent / named[1]).read_text(encoding="utf-8"))
    if "$ref" in schema:
        assert (file.parent / schema["$ref"]).resolve() == SCHEMA
    else:
        assert schema == params_schema(plugins=file.parent == ROOT)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"chanels": 3}},
        {"model": {"channels": 10**9}},
        {"data": {"name": "unknown"}},
        {"data": {"name": "digits", "labels": "fine"}},
        {"process": {"schedule": "sqrt"}},
        {"sample": {"sampler": "guess"}},
        {"sweep": {"eta": [-0.5]}},
        {"else": {}},
    ],
)
def test_mistake_is_marked(changes: dict[str, dict[str, Any]]) -> None:
    assert problems() == []
    assert problems(**changes)


def test_registry_names_are_accepted_and_a_preset_replaces_a_shape() -> None:
    for name in SAMPLERS:
        assert not problems(sample={"sampler": name})
    for name in SOURCES:
        path = {"path": "images"} if name == "image-folder" else {}
        assert not problems(data={"name": name, **path})
    for name in PRESETS:
        assert not list(VALIDATOR.iter_errors({**params(), "model": {"preset": name}}))
    assert list(VALIDATOR.iter_errors({**params(), "model": {"num_res_blocks": 2}}))


SHAPES: list[dict[str, Any]] = [
    {"channels": 16},
    {"channels": 40, "embedding": "additive", "resample": "plain", "downsample_padding": "after"},
    {"channel_mult": (1, 2, 2), "head_channels": None, "heads": 2, "attention_resolutions": (2,)},
    {"norm_eps": 1e-6, "frequency_shift": 1, "num_res_blocks": 2, "attention_resolutions": ()},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [8, 16])
def test_suggested_section_makes_it_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], side: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = small_model(tmp_path / "start.safetensors", **shape)
    start = store_pretrained(path)[1]
    meta = {"name": "digits", "image_size": side, "channels": 1, "digest": "0" * 64}
    meta |= {"classes": list("0123456789"), "counts": [9] * 10}
    values = params(
        train={"init_from": {"sha256": start.model_sha256}},
        data={"image_size": side},
        model={"attention_resolutions": [side // 2]},
    )
    config = parse(values, "before")
    with pytest.raises(PretrainedRefused):
        plan_training(config, meta, torch.device("cpu"))
    suggested = parse_yaml(format_sections(needed_changes(config, start, (side, side))))
    config = parse(values | {name: values[name] | suggested[name] for name in suggested}, "after")
    assert needed_changes(config, start, (side, side)) == {}
    plan = plan_training(config, meta, torch.device("cpu"))
    assert plan.lineage[0].sha256 == start.model_sha256


def test_the_process_of_a_continuous_model_is_suggested_with_its_scale() -> None:
    process = ProcessConfig(schedule="edm", sigma_data=0.4)
    start = artefact_of(spec_of(out_channels=1), process=process)
    wanted = {"prediction": "edm", "schedule": "edm", "sigma_data": 0.4}
    assert sections_of(start)["process"] == wanted
    assert needed_changes(parse(params(), "discrete"), start, (8, 8))["process"] == wanted
    measured = parse(params(process={"schedule": "edm"}), "by the images")
    assert needed_changes(measured, start, (8, 8))["process"] == {"sigma_data": 0.4}


@pytest.mark.parametrize("shape", SHAPES)
def test_full_section_describes_the_shape(shape: dict[str, Any]) -> None:
    start = artefact_of(spec_of(**shape))
    suggested = parse_yaml(format_sections(sections_of(start)))
    section = ModelConfig.model_validate(suggested["model"])
    assert section.model_dump(exclude={"class_cond"}).items() <= start.network.model_dump().items()
    assert suggested["process"]["prediction"] == start.process.prediction
