"""Groups of trainings that differ in their seed alone: mean and spread of a score, and gaps between groups.

The seed moves a score by more than the choice of images does, and the interval of a single training does not
contain that. Cells of one sampling seed share their x_T in all trainings: its effect is equal on both sides
of a gap.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

from diffusion.choice.confidence import Gap, Interval, gap, interval_of, student
from diffusion.choice.gate import card_diff
from diffusion.protocol.scores import CellScores, ImageScores
from diffusion.protocol.scores_document import ScoresDocument

Cells = Sequence[ImageScores]  # one cell of the trainings of a group


def cells_by_seed(documents: Iterable[ScoresDocument], name: str, bar: CellScores) -> dict[int, CellScores]:
    """Return a cell of trainings by their seed, if its protocol is that of `bar`; the first one of a seed."""
    found: dict[int, CellScores] = {}
    for document in documents:
        cell = document.cells.get(name)
        if document.training is not None and cell is not None and not card_diff(bar, cell):
            found.setdefault(document.training.seed, cell)
    return found


def mean_of(cells: Cells, metric: str) -> float:
    """Return the mean of a score over the trainings."""
    return statistics.fmean(cell.scores[metric] for cell in cells)


def deviation_of(cells: Cells, metric: str) -> float | None:
    """Return the standard deviation of a score between trainings; None for a single one."""
    return statistics.stdev(cell.scores[metric] for cell in cells) if len(cells) > 1 else None


def mean_interval(cells: Cells, metric: str) -> Interval | None:
    """Return the confidence interval of the mean over seeds by Student's t.

    For a single training it is that of its images, or None.
    """
    deviation, count = deviation_of(cells, metric), len(cells)
    if deviation is None:
        return interval_of(cells[0], metric)
    mean, half = mean_of(cells, metric), student(count - 1) * deviation / math.sqrt(count)
    return Interval(mean - half, mean + half)


def group_gap(cells: Cells, others: Cells, metric: str) -> Gap | None:
    """Return the gap between the means of two groups; None if two single trainings have no errors.

    Two groups are compared by their own spreads (Welch 1947), a single training with a group by the spread of
    the group. For two single trainings only the images count, as in `confidence.gap`.
    """
    spreads = [(deviation_of(side, metric), len(side)) for side in (cells, others)]
    known = [(deviation**2 / count, count) for deviation, count in spreads if deviation is not None]
    if not known:
        return gap(cells[0], others[0], metric)
    value = mean_of(cells, metric) - mean_of(others, metric)
    if len(known) == 1:
        ((variance, count),) = known
        return Gap(value, student(count - 1) * math.sqrt(variance * (1 + count)), between="trainings")
    total = sum(variance for variance, _ in known)
    if not total:
        return Gap(value, 0.0, between="trainings")
    freedom = total**2 / sum(variance**2 / (count - 1) for variance, count in known)
    return Gap(value, student(freedom) * math.sqrt(total), between="trainings")
