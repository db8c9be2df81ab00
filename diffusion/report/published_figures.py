"""Published figures on the same data, drawn with the sweep's curve, and why they are not comparable."""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from diffusion.papers.paper import (
    PAPERS,
    FigureComparison,
    PublishedDifference,
    compare_cells,
    open_paper,
    shared_differences,
    space_scores,
    with_score,
)
from diffusion.protocol.grid import cell_order, describe_line
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.report import figures, formatting

# Other steps are another point of the curve, not another protocol, and the cost is its other axis.
SAME_CURVE = ("steps", "eta", "nfe")
COST = ("nfe", "steps")  # fields with the cost of an image


def published_content(document: ScoresDocument) -> dict[str, Any] | None:
    """Return the template's drawing and table; None if no paper has figures on these data."""
    shown = list(matching_figures(document))
    if not shown:
        return None
    alike = shared_differences([one.differences for one in shown])
    metrics, distance = [one.figure.metric for one in shown], document.spec.distance
    metric = distance if distance in metrics else metrics[0]
    label = formatting.short_names(document.spec)["distance"] if metric == distance else metric
    return {
        "label": label,
        "drawing": _drawing(document, metric, label, shown),
        "alike": ", ".join(map(str, alike)),
        "rows": [_row(one, alike) for one in shown],
    }


def matching_figures(document: ScoresDocument) -> Iterator[FigureComparison]:
    """Yield the shipped figures on this data set with the cell that differs least, steps and η excepted."""
    first = next(iter(document.cells.values()))
    has = {name for seen in space_scores(first) for name in seen.scores}
    for paper in map(open_paper, PAPERS):
        for one in compare_cells(paper, document.cells, SAME_CURVE):
            if one.figure.metric in has and first.card["data"] in paper.datasets_of(one.figure):
                yield one


def _cost(one: FigureComparison) -> int | None:
    """Return the network evaluations per image, None if the paper does not state them."""
    stated = one.paper.protocol_of(one.figure)
    return next((int(stated[field]) for field in COST if stated.get(field)), None)


def _drawing(document: ScoresDocument, metric: str, label: str, shown: list[FigureComparison]) -> Figure:
    points = []
    for cell in sorted(document.cells.values(), key=lambda cell: cell_order(cell.axes)):
        value = with_score(metric, space_scores(cell)).scores[metric]
        points.append(figures.CurvePoint(cell.nfe, describe_line(cell.axes), value))
    marks = []
    for one in shown:
        if one.figure.metric == metric and (cost := _cost(one)) is not None:
            line = figures.NOT_COMPARABLE if one.differences else figures.COMPARABLE
            marks.append(figures.CurvePoint(cost, line, one.figure.value))
    return figures.score_curve(points, label, x_label="NFE per image", marks=marks)


def _row(one: FigureComparison, alike: list[PublishedDifference]) -> dict[str, str]:
    """Return a row of the table. Differences common to all figures are stated once, next to it."""
    cost = _cost(one)
    return {
        "name": one.figure.name,
        "paper": f"{one.paper.source}, {one.figure.where}",
        "metric": one.figure.metric,
        "cost": "" if cost is None else f"{cost:,}",
        "value": f"{one.figure.value:g}",
        "verdict": one.verdict(alike),
    }
