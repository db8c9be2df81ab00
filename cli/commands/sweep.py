"""`diffctl sweep`: other sampling settings of a trained model."""

from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, RunId, Selection
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Sample and score a grid of settings of a trained model.

    With --run-id or --champion the scores are also logged to the MLflow run of that model.
    """
    begin("loading the model", as_json)
    from cli.actions import model_sweep

    model_sweep.sweep_model(given_options(context), num_images, Selection(model, run_id, champion), as_json)


sweep.command_class = AxesCommand  # type: ignore[attr-defined]
