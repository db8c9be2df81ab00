"""Broken profiles of params.yaml, and the numbers and lists in the schemas of its sections."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from diffusion.config import Config, load
from diffusion.data.data_config import SOURCES
from diffusion.model.network_registry import MODELS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError
from diffusion.system.params import read_params
from diffusion.system.registry import load_reference
from diffusion.train.optimizers.lr_schedule import LR_SCHEDULES
from tests.conftest import ROOT, params
from tests.fuzz.mutators import HOLE, broken_json, random_place

Tree = dict[str, Any]
Place = tuple[str | int, ...]

MAX_MESSAGE = 1000  # characters of a message, without the file's name
PROFILES = {path.stem: read_params(path) for path in sorted((ROOT / "profiles").glob("*.yaml"))}
CLASSIFIER = {  # which no profile has
    "model": {"channels": 8, "channel_mult": [1, 2], "attention_resolutions": [4]},
    "train": {"steps": 12, "batch_size": 8, "lr": {"rate": 0.002}},
}
TREES = [*PROFILES.values(), {**params(), "classifier": CLASSIFIER}]

RAW = (  # YAML that is no JSON
    "!!python/object/apply:os.system [id]", "&a [*a]", "*a", "!!binary aGk=", "2024-01-01", "1:30", "010",
    "0x10", "1_000", "yes", "no", "on", "~", ".nan", "-.inf", "9" * 5000, "[" * 3000,
    "[" * 3000 + "]" * 3000, "{" * 3000, "'", '"', "{a: 1, a: 2}", "{[1]: 2}", "{? x}", "\t", "\0", "#",
    "|\n  x", "- - - 1", "---", "...", "%YAML 3.0", "<<", "@", "`", "a: b: c", "x" * 70_000,
)  # fmt: skip


def places(tree: Any, above: Place = ()) -> Iterator[Place]:
    """Return the path of each value except the root."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


def broken_profile(rng: random.Random) -> bytes:
    """Return a profile with other values, keys or depth in one place, or YAML that no values make."""
    tree = deepcopy(rng.choice(TREES))
    if rng.randrange(4):
        return broken_json(rng, tree).encode("utf-8", "surrogatepass")
    holder, key = random_place(rng, tree)
    holder[key] = HOLE
    return json.dumps(tree).replace(json.dumps(HOLE), rng.choice(RAW)).encode()


def read(path: Path) -> Config | str:
    """Return the Config of a file, or its error: one short line that begins with the file's name."""
    try:
        return load(path)
    except UsageError as refusal:
        message = str(refusal)
        assert message.startswith(str(path)), message
        assert message.isprintable(), message
        assert len(message) < MAX_MESSAGE + len(str(path)), message
        return message


REGISTRIES = (SOURCES, MODELS, PROCESSES, LR_SCHEDULES)  # with config classes in their entries


class Part(NamedTuple):
    """A part of a class's JSON schema: `path` is the field, dotted, with `[]` for what a list holds."""

    path: str
    schema: dict[str, Any]


def section_classes() -> list[type[BaseModel]]:
    """Return Config, the config classes of registry entries, and SampleSettings."""
    references = [
        *(entry.config for registry in REGISTRIES for entry in registry.values()),
        *(entry.spec for entry in MODELS.values()),
        *(entry.options for entry in (*SAMPLERS.values(), *SPACINGS.values())),
    ]
    return [Config, SampleSettings, *(load_reference(reference) for reference in dict.fromkeys(references))]


def parts(kind: type[BaseModel]) -> Iterator[Part]:
    """Yield every alternative of every field, also in nested classes and lists."""
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
    """Yield the integers and floats, without enumerations."""
    for part in parts(kind):
        if part.schema.get("type") in ("integer", "number") and not {"enum", "const"} & part.schema.keys():
            yield part


def bounds(schema: dict[str, Any]) -> tuple[Any, Any]:
    """Return the minimum and maximum of a number; None if it has none.

    For an exclusive bound, return the next integer, or a float slightly inside.
    """
    nudge = 1 if schema["type"] == "integer" else 1e-9
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + nudge
    if high is None and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - nudge
    return low, high
