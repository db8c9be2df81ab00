"""Scores as text: their names, digits and intervals, and whether two are tied."""

import math
from collections.abc import Mapping, Sequence

from diffusion.choice.confidence import gap, interval_of
from diffusion.protocol.card import SHARES
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.scores_document import CellScores, ImageScores, ScoresDocument


def short_names(spec: ExtractorSpec) -> dict[str, str]:
    """Return the page's names of distance, kernel distance and Inception score."""
    return {
        "distance": {"fid": "FID", "sfid": "sFID"}.get(spec.distance, "FD"),
        "kernel": "KID" if spec.is_inception else "KD",
        "score": "IS",
    }


def score_name(spec: ExtractorSpec, metric: str) -> str:
    """Return the page's name of a score that selects cells."""
    names = short_names(spec)
    return {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}.get(metric, metric)


def real_label(floor: Mapping[str, float]) -> str:
    """Return the label of the scores of held-out real images."""
    return "real, held out" + " (extrapolated)" * bool(floor.get("extrapolated"))


def decimals(values: Sequence[float]) -> int:
    """Return the decimals that give the largest value about four significant digits, at most 5."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest == 0 else max(0, min(5, 3 - math.floor(math.log10(largest))))


def places_of(metric: str, values: Sequence[float]) -> int:
    """Return the decimals for a score: two for a fraction, else as `decimals`."""
    return 2 if metric.startswith(SHARES) else decimals(values)


def number(value: float, places: int) -> str:
    """Format with `places` decimals and a real minus sign; no minus for a rounded zero."""
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def column_places(document: ScoresDocument, column: str) -> int:
    """Return the decimals for a score by its largest value in any cell."""
    cells = document.cells.values()
    return places_of(column, [cell.scores[column] for cell in cells if column in cell.scores])


def half_width(cell: ImageScores, metric: str, places: int) -> str | None:
    """Format half of a score's confidence interval; None if it has none."""
    ends = interval_of(cell, metric)
    return None if ends is None else number((ends.high - ends.low) / 2, places)


def is_tied(cell: CellScores, other: CellScores, metric: str) -> bool:
    """Return whether the gap of two cells is within its confidence interval."""
    found = gap(cell, other, metric)
    return found is not None and not found.is_significant
