"""The result of a sweep in one sentence, and the scores of its best cell."""

from typing import Any

from diffusion.choice.confidence import gap
from diffusion.choice.selection import describe_disagreement, describe_optimism
from diffusion.protocol.card import SHARES
from diffusion.protocol.grid import describe_cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report import score_tables


def headline(document: ScoresDocument) -> str:
    """Return a sentence with the best cell, and the cheapest of the cells that are tied with it."""
    best, count = document.cells[document.best.cell], len(document.cells)
    if count == 1:
        return f"One cell was sampled: {describe_cell(best.axes)}."
    score, tied = _score_name(document), tied_cells(document)
    if not tied:
        return f"Of {count} cells, {describe_cell(best.axes)} is the best by {score}."
    others = "one other is" if len(tied) == 1 else f"{len(tied)} others are"
    lowest = f"Of {count} cells, {describe_cell(best.axes)} has the lowest {score}"
    sentence = f"{lowest}, and {others} statistically tied with it"
    if tied[0].nfe >= best.nfe:
        return f"{sentence}."
    which = "" if len(tied) == 1 else "the cheapest "
    cost = f"{tied[0].nfe:,} NFE per image instead of {best.nfe:,}"
    return f"{sentence}: {which}{describe_cell(tied[0].axes)}, for {cost}."


def tied_cells(document: ScoresDocument) -> list[CellScores]:
    """Return the cells whose gap to the best one is within its confidence interval, the cheapest first."""
    best, metric = document.cells[document.best.cell], document.best.metric
    others = [cell for cell in document.cells.values() if cell is not best]
    tied = [cell for cell in others if (found := gap(cell, best, metric)) and not found.is_significant]
    return sorted(tied, key=lambda cell: (cell.nfe, cell.scores[metric]))


def _score_name(document: ScoresDocument) -> str:
    """Return the page's name of the score that selects the best cell."""
    spec, metric = document.spec, document.best.metric
    names = score_tables.short_names(spec)
    return {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}.get(metric, metric)


def best_cell(document: ScoresDocument) -> dict[str, Any]:
    """Return the best cell and its scores as text, and the number of cells `tied` with it."""
    name, spec = document.best.cell, document.spec
    cell = document.cells[name]
    scores = cell.scores
    distance_places = score_tables.column_places(document, spec.distance)
    kernel_places = score_tables.column_places(document, spec.kernel_distance)
    words: dict[str, Any] = {
        "name": name,
        "cell": describe_cell(cell.axes),
        "by": _score_name(document),
        "tied": len(tied_cells(document)),
        "distance": score_tables.number(scores[spec.distance], distance_places),
        "kernel": score_tables.number(scores[spec.kernel_distance], kernel_places),
        "kernel_half": score_tables.half_width(cell, spec.kernel_distance, kernel_places),
        "distance_half": score_tables.half_width(cell, spec.distance, distance_places),
        "num_images": f"{cell.num_images:,}",
        "too_low": describe_optimism(document.best),
        "disagreement": describe_disagreement(document),
    }
    if "floor" in scores:
        words["floor"] = score_tables.number(scores["floor"], distance_places)
        words["excess"] = score_tables.number(scores["excess"], distance_places)
    real = document.reference.floor
    for key, metric in {"limit": spec.limit, **{share: spec.named(share) for share in SHARES}}.items():
        if metric in scores:
            places = distance_places if key == "limit" else 2
            words[key] = score_tables.number(scores[metric], places)
            words[f"{key}_real"] = score_tables.number(real[metric], places) if metric in real else None
    if "memorisation" in scores:
        words["memorisation"] = score_tables.number(scores["memorisation"], 2)
        words["memorisation_std"] = score_tables.number(scores["memorisation_std"], 2)
    return words
