"""What a sweep found, in one sentence."""

from diffusion.choice.confidence import gap
from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.grid import describe_cell
from diffusion.protocol.scores import CellScores, ScoresDocument
from diffusion.report.score_tables import short_names


def headline(document: ScoresDocument, spec: ExtractorSpec) -> str:
    """The best cell, and the cheapest that is not told apart from it, where there is a cheaper one."""
    best, metric, names = document.cells[document.best.cell], document.best.metric, short_names(spec)
    by = {spec.kernel_distance: names["kernel"], spec.distance: names["distance"]}.get(metric, metric)
    count = len(document.cells)
    if count == 1:
        return f"One cell was sampled: {describe_cell(best.axes)}."
    said = f"Of {count} cells, {describe_cell(best.axes)} is the best by {by}"
    cheaper = _cheapest_tied(document, best, metric)
    if cheaper is None:
        return f"{said}."
    cost = f"{cheaper.evaluations:,} network evaluations an image instead of {best.evaluations:,}"
    return f"{said}; {describe_cell(cheaper.axes)} cannot be told apart from it, for {cost}."


def _cheapest_tied(document: ScoresDocument, best: CellScores, metric: str) -> CellScores | None:
    cheaper = [cell for cell in document.cells.values() if cell.evaluations < best.evaluations]
    tied = [cell for cell in cheaper if (told := gap(cell, best, metric)) and not told.is_significant]
    return min(tied, key=lambda cell: (cell.evaluations, cell.scores[metric]), default=None)
