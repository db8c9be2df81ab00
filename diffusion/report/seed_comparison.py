"""A training among those that differ from it in the seed alone: its scores, their mean, spread and place."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from diffusion.choice.confidence import Gap
from diffusion.choice.gate import card_diff
from diffusion.choice.groups import cells_by_seed, deviation_of, group_gap, mean_of
from diffusion.choice.ranking import is_published, leader
from diffusion.protocol.grid import describe_cell, describe_line
from diffusion.protocol.scores import CellScores, ScoresDocument
from diffusion.report import score_tables
from diffusion.report.figures import CurvePoint, as_svg, score_curve

Documents = Sequence[ScoresDocument]


class SeedComparison(NamedTuple):
    """A score of a training and of others, which differ from it in the seed alone: `values` by seed.

    `gap` is its own value less the mean of the others, held against what a seed does; None beside a single
    other one.
    """

    metric: str
    heading: str
    own: int
    values: dict[int, float]
    gap: Gap | None

    @property
    def mean(self) -> float:
        """The mean over the seeds, its own among them."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        """The standard deviation between the seeds."""
        return statistics.stdev(self.values.values())

    @property
    def place(self) -> int | None:
        """How many seeds are better, plus one; None for a score that ranks nothing."""
        first = leader(self.metric)
        if first is None:
            return None
        own = self.values[self.own]
        better = [value for value in self.values.values() if value != own and first(value, own) == value]
        return 1 + len(better)

    @property
    def is_apart(self) -> bool:
        """Whether it lies outside what the others' spread explains."""
        return self.gap is not None and self.gap.is_significant

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        said = {"mean": self.mean, "deviation": self.deviation, "place": self.place, "apart": self.is_apart}
        return {
            "metric": self.metric,
            "values": {str(seed): one for seed, one in self.values.items()},
            **said,
        }


def compare_seeds(document: ScoresDocument, others: Documents) -> list[SeedComparison]:
    """Each score of the report's table at the best cell, beside that of the other seeds; none without any."""
    own = _seed(document)
    cells = by_seed(document, others, document.best.cell)
    found = []
    for metric, heading in score_tables.score_columns(document, document.spec).items():
        scored = {seed: cell for seed, cell in cells.items() if metric in cell.scores}
        if is_published(metric) and own is not None:
            scored = {seed: cell for seed, cell in scored.items() if not card_diff(cells[own], cell, free=())}
        if own is not None and own in scored and len(scored) > 1:
            rest = [cell for seed, cell in scored.items() if seed != own]
            gap = group_gap([scored[own]], rest, metric) if len(rest) > 1 else None
            values = {seed: cell.scores[metric] for seed, cell in sorted(scored.items())}
            found.append(SeedComparison(metric, heading, own, values, gap))
    return found


def by_seed(document: ScoresDocument, others: Documents, name: str) -> dict[int, CellScores]:
    """A cell of a training and of those of its setting that were scored by the same protocol, one a seed.

    Of several of one seed the first counts, of the training's own seed itself.
    """
    siblings = [other for _, other in _siblings(document, others)]
    return cells_by_seed([document, *siblings], name, document.cells[name])


def excluded_seeds(document: ScoresDocument, others: Documents) -> dict[int, list[str]]:
    """The seeds whose best cell was scored by another protocol, and in what; without a field, not at all."""
    name = document.best.cell
    known, fields = by_seed(document, others, name), dict[int, list[str]]()
    for seed, other in _siblings(document, others):
        if seed not in known:
            cell = other.cells.get(name)
            fields.setdefault(seed, list(card_diff(document.cells[name], cell)) if cell else [])
    return fields


def _siblings(document: ScoresDocument, others: Documents) -> Iterator[tuple[int, ScoresDocument]]:
    """The others of the same setting, by their seeds; none where it is not known."""
    training = document.training
    for other in others:
        if training is not None and other.training is not None and other.training.setting == training.setting:
            yield other.training.seed, other


def seeds_content(document: ScoresDocument, others: Documents) -> dict[str, Any] | None:
    """The template's variables; None where no other seed was scored by the same protocol."""
    found = compare_seeds(document, others)
    if not found:
        return None
    own = found[0].own
    seeds = sorted({seed for one in found for seed in one.values})
    return {
        "own": own,
        "cell": describe_cell(document.cells[document.best.cell].axes),
        "others": [seed for seed in seeds if seed != own],
        "rows": [_row(one, seeds) for one in found],
        "apart": any(one.is_apart for one in found),
        "drawing": _drawing(document, others),
    }


def _row(one: SeedComparison, seeds: Sequence[int]) -> dict[str, Any]:
    places = score_tables.places_of(one.metric, list(one.values.values()))
    texts = {seed: score_tables.number(value, places) for seed, value in one.values.items()}
    return {
        "heading": one.heading,
        "own": texts[one.own],
        "apart": one.is_apart,
        "mean": score_tables.number(one.mean, places),
        "spread": score_tables.number(one.deviation, places),
        "place": f"{one.place} of {len(one.values)}" if one.place else "–",
        "others": [texts.get(seed, "–") for seed in seeds if seed != one.own],
    }


def _drawing(document: ScoresDocument, others: Documents) -> Markup | None:
    """The distance over the steps in the best cell's line: its own, and the mean with a band of the spread.

    None where the line has a single number of steps that others have, too.
    """
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
    label = score_tables.short_names(document.spec)["distance"]
    said = f"{label} over the number of sampling steps, of this training and as the mean of its seeds"
    return Markup(as_svg(score_curve(points, label), "seeds", said))


def _seed(document: ScoresDocument) -> int | None:
    return document.training.seed if document.training else None
