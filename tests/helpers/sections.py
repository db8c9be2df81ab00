"""What the sections of params.yaml may hold, read off their classes: every number with its bounds."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from diffusion.config import Config
from diffusion.data.source_registry import SOURCES
from diffusion.model.network_registry import MODELS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.system.references import load_reference
from diffusion.train.lr_schedule import LR_SCHEDULES

REGISTRIES = (SOURCES, MODELS, PROCESSES, LR_SCHEDULES)  # with config classes in their entries


class Part(NamedTuple):
    """A part of a class's JSON schema: `path` is the field, dotted, with `[]` for what a list holds."""

    path: str
    schema: dict[str, Any]


def section_classes() -> list[type[BaseModel]]:
    """The whole, what entries of the registries put in a section's place, and an image's own settings."""
    references = [
        *(entry.config for registry in REGISTRIES for entry in registry.values()),
        *(entry.spec for entry in MODELS.values()),
        *(entry.options for entry in SAMPLERS.values()),
    ]
    return [Config, SampleSettings, *(load_reference(reference) for reference in dict.fromkeys(references))]


def parts(kind: type[BaseModel]) -> Iterator[Part]:
    """Every alternative of every field, those of nested classes and of lists too."""
    schema = kind.model_json_schema()
    yield from _walk(schema, "", schema.get("$defs", {}))


def _walk(schema: dict[str, Any], path: str, known: dict[str, Any]) -> Iterator[Part]:
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    yield Part(path, schema)
    for alternative in schema.get("anyOf", ()):
        yield from _walk(alternative, path, known)
    for name, field in schema.get("properties", {}).items():
        yield from _walk(field, f"{path}.{name}".lstrip("."), known)
    for items in [*schema.get("prefixItems", ()), *([schema["items"]] if "items" in schema else [])]:
        yield from _walk(items, f"{path}[]", known)


def numbers(kind: type[BaseModel]) -> Iterator[Part]:
    """The parts that are whole or real numbers, but for those that are listed."""
    for part in parts(kind):
        if part.schema.get("type") in ("integer", "number") and not {"enum", "const"} & part.schema.keys():
            yield part


def bounds(schema: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest value of a number, None where it has none.

    What excludes its bound has the next whole number, or one that is a little inside of it.
    """
    nudge = 1 if schema["type"] == "integer" else 1e-9
    least, greatest = schema.get("minimum"), schema.get("maximum")
    if least is None and "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"] + nudge
    if greatest is None and "exclusiveMaximum" in schema:
        greatest = schema["exclusiveMaximum"] - nudge
    return least, greatest
