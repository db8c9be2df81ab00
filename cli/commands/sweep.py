"""`diffctl sweep`: other settings of a finished model, sampled and scored; nothing is trained."""

from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, RunId
from cli.shared.startup_message import begin
from diffusion.system.limits import MAX_COUNT


def sweep(
    steps: Annotated[str | None, typer.Option("--steps", help="A,B,… [default: params.yaml's]")] = None,
    eta: Annotated[str | None, typer.Option("--eta", help="A,B,… [default: params.yaml's]")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="A,B,… [default: params.yaml's]")] = None,
    noise: Annotated[str | None, typer.Option("--noise", help="A,B,… [default: params.yaml's]")] = None,
    spacing: Annotated[str | None, typer.Option("--spacing", help="A,B,… [default: params.yaml's]")] = None,
    guidance: Annotated[str | None, typer.Option("--guidance", help="A,B,… [default: params.yaml's]")] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option("--guidance-interval", help="LOW:HIGH or none,… of σ/α. [default: params.yaml's]"),
    ] = None,
    ema: Annotated[
        str | None, typer.Option("--ema", help="Widths A,B,… of averages. [default: params.yaml's]")
    ] = None,
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

    model_sweep.sweep_model(
        steps,
        eta,
        sampler,
        noise,
        spacing,
        guidance,
        guidance_interval,
        ema,
        num_images,
        model,
        run_id,
        champion,
        as_json,
    )
