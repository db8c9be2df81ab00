"""Where scores depart from a paper's protocol, by their own cards and the model's process."""

from collections.abc import Mapping
from typing import Any

from diffusion.protocol.paper_protocols import Mismatch, mismatches
from diffusion.protocol.scores import ScoresDocument

SWEPT = ("steps", "eta")


def score_mismatches(document: ScoresDocument, name: str, process: Mapping[str, Any]) -> list[Mismatch]:
    """The fields in which scores depart from the protocol of that name, one of PROTOCOLS.

    `process` is that section of the model, as plain values.
    """
    cells = list(document.cells.values())
    card = document.cells[document.best.cell].card
    statistics = card.get("statistics_name")
    sections = {
        "data": {"name": card["data"], "image_size": card.get("image_size")},
        "process": process,
        "sample": card,
        "sweep": {axis: sorted({getattr(cell, axis) for cell in cells}) for axis in SWEPT},
        "evaluate": {
            "extractor": document.extractor,
            "reference": document.reference.reference_split,
            "statistics": {"file": statistics} if statistics else None,
        },
    }
    return mismatches(name, sections)
