"""Which cell to sample with: quality against what an image costs."""

from typing import NamedTuple

from diffusion.choice.ranking import Cells


class Choice(NamedTuple):
    """A cell's name, its network evaluations an image, and its Fréchet distance."""

    cell: str
    evaluations: int
    distance: float


def pareto_front(cells: Cells) -> list[Choice]:
    """The cells that no other one beats in both, from the cheapest to the best.

    The distance decides, which is fair between the cells of one sweep: they share N and reference.
    """
    choices = [
        Choice(name, cell.evaluations, cell.scores[cell.spec.distance]) for name, cell in cells.items()
    ]
    front: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.evaluations, choice.distance)):
        if not front or choice.distance < front[-1].distance:
            front.append(choice)
    return front


def recommended(cells: Cells, budget: int) -> Choice | None:
    """The best cell for at most `budget` network evaluations an image; None when the cheapest costs more."""
    affordable = [choice for choice in pareto_front(cells) if choice.evaluations <= budget]
    return affordable[-1] if affordable else None
