"""`diffctl sample --budget N`: the cell of the model's own sweep that is best for N network evaluations."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.shared.flags import flags_given

if TYPE_CHECKING:
    from diffusion.protocol.scores import ScoresDocument

DECIDES = (
    "steps",
    "timesteps",
    "eta",
    "sampler",
    "noise",
    "spacing",
    "guidance",
    "guidance_interval",
    "classifier",
)


def refuse_beside_budget(context: typer.Context) -> None:
    """UsageError when the command line sets by itself what the budget decides."""
    from diffusion.system.errors import UsageError

    if flags := flags_given(context, DECIDES):
        raise UsageError(f"--budget takes {flags[0]} from the model's sweep: give one of the two")


def scores_of(model: Path, run_id: str | None, champion: bool) -> "ScoresDocument":
    """The scores document of a model: of its MLflow run, of its registered version, or of the file's project.

    Those of a file are metrics/scores.json beside the folder that it lies in.
    """
    from diffusion.layout import SCORES
    from diffusion.protocol.scores import read_scores
    from tracking.runs.scored_runs import fetch_scores

    if run_id is not None:
        from tracking.runs.run_lookup import find_run

        return fetch_scores(find_run(run_id))
    if champion:
        from diffusion.config import load
        from tracking.keys import model_name
        from tracking.registry.model_registry import fetch_champion_scores

        return fetch_champion_scores(model_name(load().data.name))
    return read_scores(model.absolute().parent.parent / SCORES)
