"""Which fields of a configuration changed: why a training begins afresh instead of going on."""

from typing import Any

SHOWN = 24  # characters of a value; a digest is told apart by fewer


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, as params.yaml would be spoken of."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name old → new` of every field that differs, in the order of their names."""
    before, after = flat(old), flat(new)
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {_shown(before, name)} → {_shown(after, name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _shown(values: dict[str, Any], name: str) -> str:
    text = str(values.get(name, "-"))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
