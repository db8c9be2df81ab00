"""The fields in which a run or its scores differ from a paper's protocol. This module loads no torch."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from diffusion.protocol.card import Card
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.protocol.samplers import SAMPLERS, SamplerEntry
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.protocol.spacing import SPACINGS, SpacingEntry

OPTION_ENTRIES: dict[str, Mapping[str, SamplerEntry | SpacingEntry]] = {
    "sampler": SAMPLERS,
    "spacing": SPACINGS,
}


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
    sample = _without_defaults(sections["sample"])
    return _mismatches(name, {**sections, "sample": sample})


def score_mismatches(document: ScoresDocument, name: str, process: Mapping[str, Any]) -> list[Mismatch]:
    """Return where scores of a model with this `process` differ from a protocol of PROTOCOLS."""
    card = document.cells[document.best.cell].card
    statistics = card.get("statistics_name")
    cards = [_without_defaults(_with_options(cell.card)) for cell in document.cells.values()]
    of_cells = [stated.field.split(".") for stated in PROTOCOLS[name].states]
    sections = {
        "data": {"name": card["data"], "image_size": card.get("image_size")},
        "process": process,
        "sample": {},
        "sweep": {
            key: [one.get(key) for one in cards]
            for section, key in of_cells
            if section in ("sample", "sweep")
        },
        "evaluate": {
            "extractor": document.extractor,
            "reference": document.reference.reference_split,
            "statistics": {"file": statistics} if statistics else None,
            "prc_images": card.get("prc_reference_images"),
            "prc_samples": card.get("prc_images"),
        },
    }
    return _mismatches(name, sections)


def _mismatches(name: str, sections: Mapping[str, Any]) -> list[Mismatch]:
    data = sections["data"]["name"]
    found = []
    for stated in PROTOCOLS[name].states:
        if stated.data and data not in stated.data:
            continue
        others = [value for value in _values(stated.field, sections) if value not in stated.values]
        if others:
            paper = " or ".join(_text(value) for value in stated.values if value is not None)
            here = ", ".join(dict.fromkeys(map(_text, others)))
            found.append(Mismatch(stated.field, paper or _text(None), here, stated.source))
    return found


def _values(field: str, sections: Mapping[str, Any]) -> list[Any]:
    """Return what a run has under a field: one value, or those that its sweep lists; of a file its name."""
    section, key = field.split(".")
    listed = sections["sweep"].get(key) if section == "sample" else None
    value = listed or sections[section].get(key)
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [
        PurePath(one["file"]).name if isinstance(one, Mapping) and "file" in one else one for one in values
    ]


def _with_options(card: Card) -> dict[str, Any]:
    """Return a card with the options of its sampler and spacing as mappings, which are JSON in cards."""
    written = {f"{field}_options": card.get(f"{field}_options") for field in OPTION_ENTRIES}
    return {**card, **{key: json.loads(text) for key, text in written.items() if text is not None}}


def _without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those options of their sampler and spacing that differ from the defaults."""
    changed = dict(values)
    for field, entries in OPTION_ENTRIES.items():
        if options := values.get(f"{field}_options"):
            entry = entries[values[field]]
            defaults = entry.checked_options({})
            checked = entry.checked_options(options).items()
            changed[f"{field}_options"] = {key: one for key, one in checked if one != defaults[key]}
    return changed


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:,}" if type(value) is int else str(value)
