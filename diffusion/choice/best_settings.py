"""Sampling settings from a model's sweep: those of the best cell, or of the best cell for a budget."""

from collections.abc import Mapping
from typing import Any

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
    """Return the settings of the best cell for an NFE of at most `budget`, with another seed.

    UsageError if no cell is that cheap, if the scores are not those of `model` with the model_sha256
    `sha256`, or if other code sampled them.
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
    """Return the settings of the best cell, with another seed."""
    name = scores.best.cell
    return settings_of(scores.cells[name], name, seed)


def usual_settings(scores: ScoresDocument | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that options default to: those of the best cell.

    None if there are no scores, or if `chosen` names another sampler.
    """
    usual = best_settings(scores) if scores else SampleSettings()
    return usual.model_dump() if scores and chosen.get("sampler", usual.sampler) == usual.sampler else {}


def settings_of(cell: CellScores, name: str, seed: int) -> SampleSettings:
    """Return the settings in a cell's card, with another seed; UsageError if they are invalid."""
    known = {key: cell.card[key] for key in SampleSettings.model_fields if key in cell.card}
    return validate(SampleSettings, {**known, "seed": seed}, f"the card of {name} does not fit")


def scores_for(scores: ScoresDocument, model: object, sha256: str) -> ScoresDocument:
    """Return the model's part of the scores; UsageError without any, or if other code sampled the images."""
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
