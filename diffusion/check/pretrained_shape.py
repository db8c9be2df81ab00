"""The changes in params.yaml that make a pretrained model fit."""

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from diffusion.config import Config
from diffusion.model.model_file import ModelDescription
from diffusion.model.network_registry import MODELS, ModelConfig, NetworkSpec
from diffusion.system.references import load_reference

Sections = dict[str, dict[str, Any]]

FREE = ModelConfig.model_fields.keys() - {"name"}  # fields that may differ
ATTENTION = "attention_resolutions"  # sides of feature maps, which scale with the image size


def sections_of(start: ModelDescription) -> Sections:
    """Return the sections `model` and `process` of its shape, without defaults."""
    network = start.network
    usual = {name for name, field in _fields(network).items() if getattr(network, name) == field.default}
    shape = {name: value for name, value in _shape(network).items() if name not in usual}
    return {"model": shape, "process": {"prediction": start.process.prediction}}


def needed_changes(config: Config, start: ModelDescription, image_size: int) -> Sections:
    """Return the fields, channels excepted, that must change for images with this side."""
    shape = _shape(start.network)
    if ATTENTION in shape:
        shape[ATTENTION] = [side * image_size // start.network.image_size for side in shape[ATTENTION]]
    wanted = {"model": shape, "process": {"prediction": start.process.prediction}}
    has = {"model": config.model, "process": config.process}
    differing = {
        section: {name: value for name, value in fields.items() if _differs(has[section], name, value)}
        for section, fields in wanted.items()
    }
    return {section: fields for section, fields in differing.items() if fields}


def format_sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Format sections as YAML with one field per line."""
    lines = []
    for section, fields in sections.items():
        lines += [f"{section}:", *(f"  {name}: {_flow(value)}" for name, value in fields.items())]
    return "\n".join(lines)


def _fields(spec: NetworkSpec) -> dict[str, Any]:
    """Return the fields of its section `model` that decide whether weights fit."""
    kind: type[ModelConfig] = load_reference(MODELS[spec.name].config)
    return {name: field for name, field in kind.model_fields.items() if name not in FREE}


def _shape(spec: NetworkSpec) -> dict[str, Any]:
    return {name: to_jsonable_python(getattr(spec, name)) for name in _fields(spec)}


def _differs(section: object, name: str, value: Any) -> bool:
    has = to_jsonable_python(getattr(section, name, None))
    return sorted(has or ()) != sorted(value) if name == ATTENTION else bool(has != value)


def _flow(value: Any) -> str:
    """Format the value as YAML on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).splitlines()[0]
