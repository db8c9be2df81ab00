"""The fields in which a run differs from a paper's protocol. This module loads no torch."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS


class Mismatch(NamedTuple):
    """A field in which a run differs from a protocol: the values of the paper and the run, and the source."""

    field: str
    paper: str
    here: str
    source: str

    def __str__(self) -> str:
        return f"{self.field} is {self.here}, and the paper has {self.paper} ({self.source})"


def mismatches(name: str, sections: Mapping[str, Any]) -> list[Mismatch]:
    """Return where a run differs from a protocol; `sections` are those of params.yaml as plain values."""
    sections = {**sections, "sample": _with_changed_options(sections["sample"])}
    data, found = sections["data"]["name"], []
    for stated in PROTOCOLS[name].states:
        if stated.data and data not in stated.data:
            continue
        others = [value for value in _values(stated.field, sections) if value not in stated.values]
        if others:
            paper = " or ".join(format_setting(value) for value in stated.values if value is not None)
            here = ", ".join(dict.fromkeys(map(format_setting, others)))
            found.append(Mismatch(stated.field, paper or format_setting(None), here, stated.source))
    return found


def _values(field: str, sections: Mapping[str, Any]) -> list[Any]:
    """Return what a run has under a field: one value, or those that its sweep lists; of a file its name."""
    section, key = field.split(".")
    listed = sections["sweep"].get(key) if section == "sample" else None
    value = listed or sections[section].get(key)
    values = value if isinstance(value, list | tuple) else [value]
    return [format_setting(one) if isinstance(one, Mapping) and "file" in one else one for one in values]


def _with_changed_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those options of sampler and spacing that differ from the defaults."""
    changed = dict(values)
    for field, entries in REGISTRIES_WITH_OPTIONS.items():
        if options := values.get(f"{field}_options"):
            entry = entries[values[field]]
            defaults = entry.checked_options({})
            checked = entry.checked_options(options).items()
            changed[f"{field}_options"] = {key: one for key, one in checked if one != defaults[key]}
    return changed


def format_setting(value: Any) -> str:
    """Return a value of params.yaml as text: of a file its name, numbers with separators of thousands."""
    if value is None:
        return "not set"
    if isinstance(value, Mapping) and "file" in value:
        return PurePath(value["file"]).name
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:,}" if type(value) is int else str(value)
