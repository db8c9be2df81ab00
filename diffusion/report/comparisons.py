"""A training compared with trainings that differ only in the seed, and with published figures.

The first have a mean, a spread and a rank of each score. Published figures on the same data are drawn with
the sweep's curve, with why they are not comparable.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from diffusion.choice.confidence import card_diff, cells_by_seed, deviation_of, group_gap, mean_of
from diffusion.choice.ranking import is_published, leader
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
from diffusion.protocol.grid import cell_order, describe_cell, describe_line
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.report import figures, formatting, score_tables
from diffusion.report.figure_base import as_svg
from diffusion.report.figures import CurvePoint, score_curve

Documents = Sequence[ScoresDocument]
# Other steps are another point of the curve, not another protocol, and the cost is its other axis.
SAME_CURVE = ("steps", "eta", "nfe")
COST = ("nfe", "steps")  # fields with the cost of an image


class SeedComparison(NamedTuple):
    """A score of a training and of other seeds: `values` by seed, with their mean and standard deviation.

    `place` is the training's rank, None for a score that ranks nothing. `is_apart` is whether it differs
    significantly from the mean of two or more others.
    """

    metric: str
    heading: str
    own: int
    values: dict[int, float]
    mean: float
    deviation: float
    place: int | None
    is_apart: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "metric": self.metric,
            "values": {str(seed): one for seed, one in self.values.items()},
            "mean": self.mean,
            "deviation": self.deviation,
            "place": self.place,
            "apart": self.is_apart,
        }


def compare_seeds(document: ScoresDocument, others: Documents) -> list[SeedComparison]:
    """Return a comparison for each score of the report's table at the best cell; empty without others."""
    own = document.training.seed if document.training else None
    cells = by_seed(document, others, document.best.cell)
    found = []
    for metric, heading in score_tables.score_columns(document).items():
        scored = {seed: cell for seed, cell in cells.items() if metric in cell.scores}
        if is_published(metric) and own is not None:
            scored = {seed: cell for seed, cell in scored.items() if not card_diff(cells[own], cell, free=())}
        if own is not None and own in scored and len(scored) > 1:
            found.append(_compare(metric, heading, own, scored))
    return found


def _compare(metric: str, heading: str, own: int, cells: dict[int, CellScores]) -> SeedComparison:
    values = {seed: cell.scores[metric] for seed, cell in sorted(cells.items())}
    rest = [cell for seed, cell in cells.items() if seed != own]
    gap = group_gap([cells[own]], rest, metric) if len(rest) > 1 else None
    place: int | None = None
    if (first := leader(metric)) is not None:
        place = 1 + sum(one != values[own] and first(one, values[own]) == one for one in values.values())
    mean, deviation = statistics.fmean(values.values()), statistics.stdev(values.values())
    is_apart = gap is not None and gap.is_significant
    return SeedComparison(metric, heading, own, values, mean, deviation, place, is_apart)


def by_seed(document: ScoresDocument, others: Documents, name: str) -> dict[int, CellScores]:
    """Return a cell of a training and of its siblings with the same protocol, the first one of each seed."""
    siblings = [other for _, other in _siblings(document, others)]
    return cells_by_seed([document, *siblings], name, document.cells[name])


def excluded_seeds(document: ScoresDocument, others: Documents) -> dict[int, list[str]]:
    """Return the seeds with another protocol of the best cell, and the fields; none if it is missing."""
    name = document.best.cell
    known, fields = by_seed(document, others, name), dict[int, list[str]]()
    for seed, other in _siblings(document, others):
        if seed not in known:
            cell = other.cells.get(name)
            fields.setdefault(seed, list(card_diff(document.cells[name], cell)) if cell else [])
    return fields


def _siblings(document: ScoresDocument, others: Documents) -> Iterator[tuple[int, ScoresDocument]]:
    """Yield the others of the same setting with their seeds."""
    training = document.training
    for other in others:
        if training is not None and other.training is not None and other.training.setting == training.setting:
            yield other.training.seed, other


def seeds_content(document: ScoresDocument, others: Documents) -> dict[str, Any] | None:
    """Return the template's variables; None without other seeds of the same protocol."""
    found = compare_seeds(document, others)
    if not found:
        return None
    own = found[0].own
    seeds = sorted({seed for one in found for seed in one.values})
    return {
        "own": own,
        "cell": describe_cell(document.cells[document.best.cell].axes),
        "others": [seed for seed in seeds if seed != own],
        "rows": [_seed_row(one, seeds) for one in found],
        "apart": any(one.is_apart for one in found),
        "drawing": _seed_drawing(document, others),
    }


def _seed_row(one: SeedComparison, seeds: Sequence[int]) -> dict[str, Any]:
    places = formatting.places_of(one.metric, list(one.values.values()))
    texts = {seed: formatting.number(value, places) for seed, value in one.values.items()}
    return {
        "heading": one.heading,
        "own": texts[one.own],
        "apart": one.is_apart,
        "mean": formatting.number(one.mean, places),
        "spread": formatting.number(one.deviation, places),
        "place": f"{one.place} of {len(one.values)}" if one.place else "–",
        "others": [texts.get(seed, "–") for seed in seeds if seed != one.own],
    }


def _seed_drawing(document: ScoresDocument, others: Documents) -> str | None:
    """Draw the distance in the best cell's line, with mean and spread of the seeds; None for one point."""
    metric, best = document.spec.distance, document.cells[document.best.cell]
    points = []
    for name, cell in document.cells.items():
        cells = list(by_seed(document, others, name).values())
        if describe_line(cell.axes) == describe_line(best.axes) and len(cells) > 1:
            mean, spread = mean_of(cells, metric), deviation_of(cells, metric) or 0.0
            points.append(CurvePoint(cell.steps, "this training", cell.scores[metric]))
            points.append(CurvePoint(cell.steps, "mean of the seeds", mean, (mean - spread, mean + spread)))
    if len(points) <= 2:
        return None
    label = formatting.short_names(document.spec)["distance"]
    title = f"{label} over the number of sampling steps, of this training and as the mean of its seeds"
    return as_svg(score_curve(points, label), "seeds", title)


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
        "drawing": _published_drawing(document, metric, label, shown),
        "alike": ", ".join(map(str, alike)),
        "rows": [_published_row(one, alike) for one in shown],
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


def _published_drawing(
    document: ScoresDocument, metric: str, label: str, shown: list[FigureComparison]
) -> Figure:
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


def _published_row(one: FigureComparison, alike: list[PublishedDifference]) -> dict[str, str]:
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
