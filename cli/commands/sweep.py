"""`diffctl sweep`: other settings of a finished model, sampled and scored; nothing is trained."""

from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, RunId
from cli.shared.sampling_options import AxesCommand, given_options
from cli.shared.startup_message import begin
from diffusion.system.limits import MAX_COUNT


def sweep(
    context: typer.Context,
    num_images: Annotated[
        int | None,
        typer.Option("--num-images", min=2, max=MAX_COUNT, help="Images per cell. [default: params.yaml's]"),
    ] = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores document as JSON.")] = False,
) -> None:
    """Sample and score a grid of settings from a finished model, against data/reference.

    With --run-id or --champion the scores go to that model's run in MLflow, beside those that it has.
    """
    begin("loading the model", as_json)
    from cli.actions import model_sweep

    model_sweep.sweep_model(given_options(context), num_images, model, run_id, champion, as_json)


sweep.command_class = AxesCommand  # type: ignore[attr-defined]
