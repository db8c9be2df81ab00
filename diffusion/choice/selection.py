"""What was chosen of a sweep, with what choosing does to its score, as a scores document says it."""

from diffusion.choice.budget import Choice, pareto_front
from diffusion.choice.optimism import optimism
from diffusion.choice.ranking import Cells, best_cell
from diffusion.protocol.scores import FrontCell, SelectedCell


def select_best(cells: Cells) -> SelectedCell:
    """The best cell of all.

    Its `optimism` is how much too low its score is on average, since chance helped to choose it: None where
    scores have no errors.
    """
    name, metric, value = best_cell(cells)
    too_low = optimism(list(cells.values()), metric)
    return SelectedCell(cell=name, metric=metric, value=value, of=len(cells), optimism=too_low)


def select_front(cells: Cells) -> list[FrontCell]:
    """The cell for each budget from the cheapest on, the best of those that cost no more than it does.

    Its `optimism` is of the choice among these.
    """
    return [_chosen(choice, cells) for choice in pareto_front(cells)]


def _chosen(choice: Choice, cells: Cells) -> FrontCell:
    affordable = [cell for cell in cells.values() if cell.evaluations <= choice.evaluations]
    metric = cells[choice.cell].spec.distance
    return FrontCell(
        cell=choice.cell,
        evaluations=choice.evaluations,
        metric=metric,
        value=choice.distance,
        of=len(affordable),
        optimism=optimism(affordable, metric),
    )


def describe_selection(chosen: SelectedCell) -> str:
    """What was chosen in one line: the score, its cell, and what choosing does to it."""
    aside = describe_optimism(chosen)
    return f"{chosen.metric} {chosen.value:.4g} at {chosen.cell}" + (f", {aside}" if aside else "")


def describe_optimism(chosen: SelectedCell) -> str:
    """What choosing does, as the end of a sentence about the score; empty where nothing is to be said."""
    if not chosen.optimism or chosen.of < 2:
        return ""
    return f"about {chosen.optimism:.2g} too low, as the least of {chosen.of}"
