"""What an image costs against how good images are: the cells of the model's sweep."""

from typing import Any

from pydantic import BaseModel

from diffusion.choice.best_settings import settings_of
from diffusion.choice.confidence import interval_of
from diffusion.protocol.scores import ScoresDocument


class Point(BaseModel):
    """A cell: network evaluations an image, its Fréchet distance, and the distance's interval if it has one.

    `settings` are all that its images were sampled by but the seed. `on_front`: no other cell is both cheaper
    and better.
    """

    cell: str
    evaluations: int
    distance: float
    low: float | None
    high: float | None
    on_front: bool
    settings: dict[str, Any]


class SweepCost(BaseModel):
    """The cells of a sweep, the cheapest first, the name of their distance and of how many images it is."""

    metric: str
    num_images: int
    points: list[Point]


def sweep_cost(scores: ScoresDocument) -> SweepCost:
    """The cost and the distance of each cell of a sweep."""
    metric, front = scores.spec.distance, {one.cell for one in scores.front}
    points = []
    for name, cell in scores.cells.items():
        ends = interval_of(cell, metric)
        point = Point(
            cell=name,
            evaluations=cell.evaluations,
            distance=cell.scores[metric],
            low=ends.low if ends else None,
            high=ends.high if ends else None,
            on_front=name in front,
            settings=settings_of(cell, name, 0).model_dump(mode="json", exclude={"seed"}),
        )
        points.append(point)
    points.sort(key=lambda point: (point.evaluations, point.distance))
    return SweepCost(metric=metric, num_images=next(iter(scores.cells.values())).num_images, points=points)
