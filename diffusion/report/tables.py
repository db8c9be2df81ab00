"""What the report says in numbers: the scores of every cell, the protocol, and how to name them."""

import math
from collections.abc import Sequence
from typing import Any

from diffusion.evaluation.card import Card
from diffusion.evaluation.evaluate import Document
from diffusion.evaluation.ranking import best
from diffusion.evaluation.specs import ExtractorSpec
from diffusion.grid import AXES, order, spoken

PROTOCOL = {
    "Samples": (
        "num_images model_sha256 sampler steps eta noise spacing guidance clip ema precision classes seed"
    ),
    "Reference": (
        "data image_size reference_split reference_count reference_digest "
        "heldout_split heldout_count heldout_digest"
    ),
    "Scores": (
        "extractor weights_sha256 resize feature_dtype kid_subset_size kid_subsets is_splits subset_seed"
    ),
    "Versions": "torch torch_fidelity evaluation",
}


AXIS_NAMES = {"eta": "η", "guidance": "w"}


def short_names(spec: ExtractorSpec) -> dict[str, str]:
    """How the page calls the distance, the kernel distance and the Inception score."""
    return {
        "distance": "FID" if spec.is_inception else "FD",
        "kernel": "KID" if spec.is_inception else "KD",
        "score": "IS",
    }


def decimals(values: Sequence[float]) -> int:
    """Decimals that give the largest value about four significant digits, at most 5."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest == 0 else max(0, min(5, 3 - math.floor(math.log10(largest))))


def number(value: float, places: int) -> str:
    """The value with `places` decimals and a real minus sign; no minus before a rounded zero."""
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def score_table(document: Document, spec: ExtractorSpec) -> dict[str, Any]:
    """Axes, columns and rows of text: held-out real images first, then the cells by steps.

    The best value of a column and the row of the best cell are marked.
    """
    names = short_names(spec)
    columns = {spec.distance: names["distance"], "excess": "excess", spec.kernel_distance: names["kernel"]}
    if spec.is_inception:
        columns[spec.score] = names["score"]
    cells = document["cells"]
    places = {column: _places(document, column) for column in columns}
    leaders = {column: _leader(cells, column, highest=column == spec.score) for column in columns}
    chosen, before = best(cells)[0], None
    rows = []
    if floor := document["reference"].get("floor"):
        entries = [_entry({**floor, "excess": 0.0}, column, places[column]) for column in columns]
        rows.append({"label": "real, held out", "entries": entries, "real": True})
    axes = [axis for axis in AXES if any(axis in cell for cell in cells.values())]
    for name, cell in sorted(cells.items(), key=lambda item: order(item[1])):
        rows.append(
            {
                "axes": [_text(cell.get(axis)) for axis in axes],
                "first": cell["steps"] != before,
                "best": name == chosen,
                "entries": [
                    _entry(cell["scores"], column, places[column], leads=name == leaders[column])
                    for column in columns
                ],
            }
        )
        before = cell["steps"]
    return {
        "axes": [AXIS_NAMES.get(axis, axis) for axis in axes],
        "columns": list(columns.values()),
        "rows": rows,
    }


def headline(document: Document, spec: ExtractorSpec) -> dict[str, str]:
    """The best cell and its scores, as text."""
    name, metric, _ = best(document["cells"])
    names = short_names(spec)
    ranks = {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}
    cell = document["cells"][name]
    scores = cell["scores"]
    distance_places = _places(document, spec.distance)
    kernel_places = _places(document, spec.kernel_distance)
    words = {
        "name": name,
        "cell": spoken(cell),
        "by": ranks.get(metric, metric),
        "distance": number(scores[spec.distance], distance_places),
        "kernel": number(scores[spec.kernel_distance], kernel_places),
        "kernel_std": number(scores[f"{spec.kernel_distance}_std"], kernel_places),
        "num_images": f"{cell['card']['num_images']:,}",
    }
    if "floor" in scores:
        words["floor"] = number(scores["floor"], distance_places)
        words["excess"] = number(scores["excess"], distance_places)
    return words


def protocol_table(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """The card's fields in groups, each with the value of all cells or, where they differ, every value."""
    fields = {field for card in cards for field in card}
    groups = {title: [name for name in names.split() if name in fields] for title, names in PROTOCOL.items()}
    known = {name for names in groups.values() for name in names}
    groups["Other"] = sorted(fields - known)
    return [
        {"title": title, "fields": [{"name": name, "value": _values(cards, name)} for name in names]}
        for title, names in groups.items()
        if names
    ]


def _places(document: Document, column: str) -> int:
    """Decimals for a score, by its largest value in any cell."""
    cells = document["cells"].values()
    return decimals([cell["scores"][column] for cell in cells if column in cell["scores"]])


def _leader(cells: dict[str, Any], column: str, highest: bool) -> str:
    """The cell with the best value of a score, empty where no cell has it."""
    values = {name: cell["scores"][column] for name, cell in cells.items() if column in cell["scores"]}
    return (max if highest else min)(values, key=lambda name: values[name], default="")


def _entry(scores: dict[str, Any], column: str, places: int, leads: bool = False) -> dict[str, Any]:
    if column not in scores:
        return {"text": "–", "std": None, "best": False}
    std = scores.get(f"{column}_std")
    return {
        "text": number(scores[column], places),
        "std": None if std is None else number(std, places),
        "best": leads,
    }


def _values(cards: Sequence[Card], field: str) -> str:
    """The field's values in all cards, numbers in their order."""
    values = {_text(card.get(field)): card.get(field) for card in cards}
    if all(isinstance(value, int | float) for value in values.values()):
        return ", ".join(text for _, text in sorted((value, text) for text, value in values.items()))
    return ", ".join(values)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
