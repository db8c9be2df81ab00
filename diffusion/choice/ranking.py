"""The score that ranks cells and models. Lower is better."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusion.protocol.extractors import ExtractorSpec
from diffusion.protocol.scores import CellScores, ImageScores

FEW_IMAGES = 5000  # below, the Fréchet distance is biased by N and the unbiased kernel distance ranks

Cells = Mapping[str, CellScores]


def rank_metric(cell: ImageScores) -> str:
    """Return the name of the score that ranks a cell."""
    return ranking_score(cell.spec, cell.num_images, has_floor="excess" in cell.scores)


def ranking_score(spec: ExtractorSpec, num_images: int, *, has_floor: bool) -> str:
    """Return the ranking score: the kernel distance below 5,000 images, else the excess or the distance."""
    if num_images < FEW_IMAGES:
        return spec.kernel_distance
    return "excess" if has_floor else spec.distance


def best_cell(cells: Cells) -> tuple[str, str, float]:
    """Return the best cell's name, metric and value; among equal cells the one with the fewest steps."""

    def order(name: str) -> tuple[float, int, str]:
        cell = cells[name]
        return cell.scores[rank_metric(cell)], cell.steps, name

    name = min(cells, key=order)
    metric = rank_metric(cells[name])
    return name, metric, cells[name].scores[metric]


def is_auxiliary(metric: str) -> bool:
    """Return whether a name is that of a score's spread or of an end of its interval."""
    return metric.endswith(("_std", "_low", "_high"))


def is_limit(metric: str) -> bool:
    """Return whether a name is that of a distance extrapolated to N → ∞."""
    return metric.endswith("_inf")


def is_published(metric: str) -> bool:
    """Return whether a name is that of a distance to published statistics."""
    return "_published" in metric


def leader(metric: str) -> Callable[..., Any] | None:
    """Return `min` or `max`, whichever finds the best value of a score; None for one that does not rank.

    With other networks than Inception, the Inception score ranks noise above images. Memorisation is best at
    0. Crowded samples have a higher density than real images.
    """
    if is_auxiliary(metric):
        return None
    if metric.startswith(("precision", "recall", "coverage")):
        return max
    return min if metric.startswith(("kd_", "kid", "fd_", "fid", "sfid", "cmmd", "excess")) else None
