"""The headline of the report: the best cell, and the cells that are tied with it."""

from collections.abc import Mapping
from typing import Any

from diffusion.choice.selection import describe_disagreement, describe_optimism
from diffusion.protocol.card import SHARES
from diffusion.protocol.grid import describe_cell
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.report.score_format import (
    column_places,
    half_width,
    is_tied,
    number,
    score_name,
)

FAR_RECALL = 0.2  # of the recall of real images, or of 1: samples with less leave out most of the data


def headline(document: ScoresDocument) -> str:
    """Return a sentence with the best cell, and the cheapest of the cells that are tied with it."""
    best, count = document.cells[document.best.cell], len(document.cells)
    if count == 1:
        return f"One cell was sampled: {describe_cell(best.axes)}."
    score, tied = score_name(document.spec, document.best.metric), tied_cells(document)
    if not tied:
        return f"Of {count} cells, {describe_cell(best.axes)} is the best by {score}."
    others = "one other is" if len(tied) == 1 else f"{len(tied)} others are"
    lowest = f"Of {count} cells, {describe_cell(best.axes)} has the lowest {score}"
    sentence = f"{lowest}, and {others} statistically tied with it"
    if tied[0].nfe >= best.nfe:
        return f"{sentence}."
    which = "" if len(tied) == 1 else "the cheapest is "
    cost = f"{tied[0].nfe:,} NFE per image instead of {best.nfe:,}"
    return f"{sentence}: {which}{describe_cell(tied[0].axes)}, for {cost}."


def tied_cells(document: ScoresDocument) -> list[CellScores]:
    """Return the cells that are statistically tied with the best one, the cheapest first."""
    best, metric = document.cells[document.best.cell], document.best.metric
    others = [cell for cell in document.cells.values() if cell is not best]
    tied = (cell for cell in others if is_tied(cell, best, metric))
    return sorted(tied, key=lambda cell: (cell.nfe, cell.scores[metric]))


def best_cell(document: ScoresDocument) -> dict[str, Any]:
    """Return the best cell and its scores as text, and the number of cells `tied` with it."""
    name, spec = document.best.cell, document.spec
    cell = document.cells[name]
    scores = cell.scores
    distance_places = column_places(document, spec.distance)
    kernel_places = column_places(document, spec.kernel_distance)
    words: dict[str, Any] = {
        "name": name,
        "cell": describe_cell(cell.axes),
        "by": score_name(spec, document.best.metric),
        "tied": len(tied_cells(document)),
        "distance": number(scores[spec.distance], distance_places),
        "kernel": number(scores[spec.kernel_distance], kernel_places),
        "kernel_half": half_width(cell, spec.kernel_distance, kernel_places),
        "distance_half": half_width(cell, spec.distance, distance_places),
        "num_images": f"{cell.num_images:,}",
        "too_low": describe_optimism(document.best),
        "disagreement": describe_disagreement(document),
    }
    if "floor" in scores:
        words["floor"] = number(scores["floor"], distance_places)
        words["excess"] = number(scores["excess"], distance_places)
    real = document.reference.floor
    for key, metric in {"limit": spec.limit, **{share: spec.named(share) for share in SHARES}}.items():
        if metric in scores:
            places = distance_places if key == "limit" else 2
            words[key] = number(scores[metric], places)
            words[f"{key}_real"] = number(real[metric], places) if metric in real else None
    if is_far(cell, real):
        words["far"] = True
    if "memorisation" in scores:
        words["memorisation"] = number(scores["memorisation"], 2)
        words["memorisation_std"] = number(scores["memorisation_std"], 2)
    return words


def is_far(cell: CellScores, real: Mapping[str, float]) -> bool:
    """Return whether the samples are far from the data: an excess above the floor, and hardly any recall."""
    scores, recall = cell.scores, cell.spec.named("recall")
    if "excess" not in scores or recall not in scores:
        return False
    return scores["excess"] > scores["floor"] and scores[recall] < FAR_RECALL * real.get(recall, 1.0)
