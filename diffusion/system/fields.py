"""Nested values by dotted name, as in params.yaml, and the fields that differ."""

import json
from typing import Any

from diffusion.system.section import brief

MAX_SHOWN = 24  # characters of a value in a message


def flatten_fields(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name, as in params.yaml."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flatten_fields(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `name old → new` of every field that differs, sorted by name, with values as in YAML."""
    before, after = flatten_fields(old), flatten_fields(new)

    def shown(values: dict[str, Any], name: str) -> str:
        value = values.get(name, "not set")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return brief(text, str, MAX_SHOWN)

    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name} {shown(before, name)} → {shown(after, name)}" for name in changed]
