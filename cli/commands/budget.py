"""`diffctl sample --budget N`: the cell of the model's own sweep that is best for N network evaluations."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.shared.flags import flags_given

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument
    from diffusion.protocol.settings import SampleSettings

DECIDES = ("steps", "timesteps", "eta", "sampler", "noise", "spacing", "guidance", "classifier")


def refuse_beside_budget(context: typer.Context) -> None:
    """UsageError when the command line sets by itself what the budget decides."""
    from diffusion.system.errors import UsageError

    if flags := flags_given(context, DECIDES):
        raise UsageError(f"--budget takes {flags[0]} from the model's sweep: give one of the two")


def budget_settings(budget: int, seed: int, model: Path, scores: "ScoresDocument") -> "SampleSettings":
    """The settings of the cell that `scores` recommend, with another seed.

    UsageError when they are of another model or of what other code sampled, or when no cell is that cheap.
    """
    from diffusion.choice.budget import pareto_front, recommended
    from diffusion.model.model_file import read_artefact
    from diffusion.protocol.grid import SAMPLING_VERSION
    from diffusion.protocol.settings import SampleSettings
    from diffusion.system.errors import UsageError
    from diffusion.system.section import validated

    cells, sha256 = scores.cells, read_artefact(model).model_sha256
    cards = [cell.card for cell in cells.values()]
    if any(card.get("model_sha256") != sha256 for card in cards):
        raise UsageError(f"the scores are of another model than {model}: `diffctl run` makes new ones")
    if any(card.get("sampling_version") != SAMPLING_VERSION for card in cards):
        raise UsageError(
            f"the scores are not of sampling_version {SAMPLING_VERSION}, as this code samples: "
            "`diffctl run` makes new ones"
        )
    choice = recommended(cells, budget)
    if choice is None:
        least = pareto_front(cells)[0]
        raise UsageError(
            f"no cell of the sweep takes {budget} network evaluations or fewer: "
            f"the cheapest is {least.cell} with {least.evaluations}"
        )
    card = cells[choice.cell].card
    known = {key: card[key] for key in SampleSettings.model_fields if key in card}
    return validated(SampleSettings, {**known, "seed": seed}, f"the card of {choice.cell} does not fit")


def scores_of(model: Path, run_id: str | None, champion: bool) -> "ScoresDocument":
    """The scores document of a model: of its MLflow run, of its registered version, or of the file's project.

    Those of a file are metrics/scores.json beside the folder that it lies in.
    """
    from diffusion.layout import SCORES
    from diffusion.protocol.scores import read_scores
    from tracking.runs import fetch_scores

    if run_id is not None:
        from tracking.lookup import find_run

        return fetch_scores(find_run(run_id))
    if champion:
        from diffusion.config import load
        from tracking.names import model_name
        from tracking.registry import fetch_champion_scores

        return fetch_champion_scores(model_name(load().data.name))
    return read_scores(model.absolute().parent.parent / SCORES)
