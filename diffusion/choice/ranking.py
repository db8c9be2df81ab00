"""Which score says that one cell, or one model, is better than another. Lower is better, always."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.scores import CellScores, ImageScores

FEW_IMAGES = 5000  # below, the Fréchet distance is biased by N and the unbiased kernel distance ranks

Cells = Mapping[str, CellScores]


def rank_metric(cell: ImageScores) -> str:
    """The name of the score to rank a cell by."""
    return ranking_score(cell.spec, cell.num_images, has_floor="excess" in cell.scores)


def ranking_score(spec: ExtractorSpec, num_images: int, *, has_floor: bool) -> str:
    """The name of the score that ranks so many images as this extractor sees them.

    It is the kernel distance below 5,000 images, else the excess, or the Fréchet distance without a floor.
    """
    if num_images < FEW_IMAGES:
        return spec.kernel_distance
    return "excess" if has_floor else spec.distance


def best_cell(cells: Cells) -> tuple[str, str, float]:
    """The best cell's name, its metric and its value; of equal ones that with the fewest steps."""

    def order(name: str) -> tuple[float, int, str]:
        cell = cells[name]
        return cell.scores[rank_metric(cell)], cell.steps, name

    name = min(cells, key=order)
    metric = rank_metric(cells[name])
    return name, metric, cells[name].scores[metric]


def is_auxiliary(metric: str) -> bool:
    """Whether a name is of what stands beside a score: its spread, an end of its interval."""
    return metric.endswith(("_std", "_low", "_high"))


def is_limit(metric: str) -> bool:
    """Whether a name is of a distance extrapolated to N → ∞, which is to be of no number of images."""
    return metric.endswith("_inf")


def is_published(metric: str) -> bool:
    """Whether a name is of a distance to published statistics, which are no part of the other scores."""
    return "_published" in metric


def leader(metric: str) -> Callable[..., Any] | None:
    """`min` or `max`, whichever finds the best value of a score; None for one that ranks nothing.

    Inception scores of other networks than Inception rank noise above images; 0 is best for memorisation, and
    samples that crowd have more density than real images.
    """
    if is_auxiliary(metric):
        return None
    if metric.startswith(("precision", "recall", "coverage")):
        return max
    return min if metric.startswith(("kd_", "kid", "fd_", "fid", "sfid", "cmmd", "excess")) else None
