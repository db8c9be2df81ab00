"""Settings to sample with out of a model's own sweep: those of its best cell, or of the best for a budget."""

from diffusion.choice.document_slices import model_scores
from diffusion.choice.selection import pareto_front, recommended
from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError
from diffusion.system.section import validate


def budget_settings(
    scores: ScoresDocument, budget: int, seed: int, model: object, sha256: str
) -> SampleSettings:
    """The settings of the cell that is best for at most `budget` network evaluations, with another seed.

    UsageError when no cell is that cheap, or when the scores are not of `model`, whose model_sha256 is
    `sha256`, or of what other code sampled.
    """
    cells = scores_for(scores, model, sha256).cells
    choice = recommended(cells, budget)
    if choice is None:
        least = pareto_front(cells)[0]
        raise UsageError(
            f"no cell of the sweep takes {budget} network evaluations or fewer: "
            f"the cheapest is {least.cell} with {least.nfe}"
        )
    return settings_of(cells[choice.cell], choice.cell, seed)


def best_settings(scores: ScoresDocument, seed: int = 0) -> SampleSettings:
    """The settings of the cell that ranks first, with another seed."""
    name = scores.best.cell
    return settings_of(scores.cells[name], name, seed)


def settings_of(cell: CellScores, name: str, seed: int) -> SampleSettings:
    """What a cell's card says of how it was sampled, with another seed; UsageError where it does not fit."""
    known = {key: cell.card[key] for key in SampleSettings.model_fields if key in cell.card}
    return validate(SampleSettings, {**known, "seed": seed}, f"the card of {name} does not fit")


def scores_for(scores: ScoresDocument, model: object, sha256: str) -> ScoresDocument:
    """Those of the scores that are the model's; UsageError without any, or of images that other code made."""
    own = model_scores(scores, sha256)
    if own is None:
        raise UsageError(f"the scores are of another model than {model}: `diffctl run` makes new ones")
    cards = [cell.card for cell in own.cells.values()]
    if any(card.get("sampling_version") != SAMPLING_VERSION for card in cards):
        raise UsageError(
            f"the scores are not of sampling_version {SAMPLING_VERSION}, as this code samples: "
            "`diffctl run` makes new ones"
        )
    return own
