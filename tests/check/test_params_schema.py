"""The JSON schema of params.yaml: up to date, accepts what the classes accept, marks mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from diffusion.check.params_schema import params_schema
from diffusion.data.data_config import SOURCES
from diffusion.model.presets import PRESETS
from diffusion.protocol.samplers import SAMPLERS
from tests.conftest import ROOT, params
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
