"""The cells of the model's sweep: NFE per image against Fréchet distance."""

from typing import Any

from pydantic import BaseModel

from diffusion.choice.best_settings import settings_of
from diffusion.choice.confidence import interval_of
from diffusion.protocol.scores_document import ScoresDocument


class Point(BaseModel):
    """A cell: its NFE per image, its Fréchet distance, and the confidence interval if known.

    `settings` lacks the seed. `on_front`: no other cell is both cheaper and better.
    """

    cell: str
    nfe: int
    distance: float
    low: float | None
    high: float | None
    on_front: bool
    settings: dict[str, Any]


class SweepCost(BaseModel):
    """The cells of a sweep by increasing NFE, the name of the distance, and its number of images."""

    metric: str
    num_images: int
    points: list[Point]


def sweep_cost(scores: ScoresDocument) -> SweepCost:
    """Return the NFE and the distance of each cell of a sweep."""
    metric, front = scores.spec.distance, {one.cell for one in scores.front}
    points = []
    for name, cell in scores.cells.items():
        ends = interval_of(cell, metric)
        point = Point(
            cell=name,
            nfe=cell.nfe,
            distance=cell.scores[metric],
            low=ends.low if ends else None,
            high=ends.high if ends else None,
            on_front=name in front,
            settings=settings_of(cell, name, 0).model_dump(mode="json", exclude={"seed"}),
        )
        points.append(point)
    points.sort(key=lambda point: (point.nfe, point.distance))
    return SweepCost(metric=metric, num_images=next(iter(scores.cells.values())).num_images, points=points)
