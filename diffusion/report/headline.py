"""The result of a sweep in one sentence, and the scores of its best cell."""

from diffusion.choice.confidence import gap
from diffusion.choice.selection import describe_optimism
from diffusion.protocol.card import SHARES
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.grid import describe_cell
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report import score_tables


def headline(document: ScoresDocument, spec: ExtractorSpec) -> str:
    """Return a sentence with the best cell, and a cheaper cell that is statistically tied with it."""
    best, metric, names = (
        document.cells[document.best.cell],
        document.best.metric,
        score_tables.short_names(spec),
    )
    by = {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}.get(metric, metric)
    count = len(document.cells)
    if count == 1:
        return f"One cell was sampled: {describe_cell(best.axes)}."
    sentence = f"Of {count} cells, {describe_cell(best.axes)} is the best by {by}"
    cheaper = _cheapest_tied(document, best, metric)
    if cheaper is None:
        return f"{sentence}."
    cost = f"{cheaper.nfe:,} NFE per image instead of {best.nfe:,}"
    return f"{sentence}; {describe_cell(cheaper.axes)} is statistically tied with it, for {cost}."


def _cheapest_tied(document: ScoresDocument, best: CellScores, metric: str) -> CellScores | None:
    cheaper = [cell for cell in document.cells.values() if cell.nfe < best.nfe]
    tied = [cell for cell in cheaper if (found := gap(cell, best, metric)) and not found.is_significant]
    return min(tied, key=lambda cell: (cell.nfe, cell.scores[metric]), default=None)


def best_cell(document: ScoresDocument, spec: ExtractorSpec) -> dict[str, str | None]:
    """Return the best cell and its scores as text."""
    name, metric = document.best.cell, document.best.metric
    names = score_tables.short_names(spec)
    ranks = {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}
    cell = document.cells[name]
    scores = cell.scores
    distance_places = score_tables.column_places(document, spec.distance)
    kernel_places = score_tables.column_places(document, spec.kernel_distance)
    words: dict[str, str | None] = {
        "name": name,
        "cell": describe_cell(cell.axes),
        "by": ranks.get(metric, metric),
        "distance": score_tables.number(scores[spec.distance], distance_places),
        "kernel": score_tables.number(scores[spec.kernel_distance], kernel_places),
        "kernel_half": score_tables.half_width(cell, spec.kernel_distance, kernel_places),
        "distance_half": score_tables.half_width(cell, spec.distance, distance_places),
        "num_images": f"{cell.num_images:,}",
        "too_low": describe_optimism(document.best),
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
