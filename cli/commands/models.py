"""`diffctl import` and `diffctl export`: models from other projects, and for them."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, Preset, RunId, file_option, folder_argument, folder_option
from cli.shared.startup_message import begin
from diffusion.layout import AVERAGES

Out = Annotated[
    Path | None, file_option("--out", "-o", help="The model file. [default: models/NAME.safetensors]")
]


AsJson = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]


import_app = typer.Typer(name="import", help="Import a model of another project.", no_args_is_help=True)


export_app = typer.Typer(name="export", help="Export a model for another project.", no_args_is_help=True)


@export_app.callback()
def _export() -> None:
    """Keep `diffusers` a subcommand while it is the only one."""


@import_app.command("openai")
def openai(
    file: Annotated[Path, typer.Argument(help="A .pt file of guided-diffusion or improved-diffusion.")],
    preset: Annotated[Preset, typer.Option("--preset", help="Its shape.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Import a published checkpoint; it is read without running any code in it."""
    begin("reading the checkpoint", as_json)
    from cli.actions import model_formats

    model_formats.import_openai_model(file, preset, out, as_json)


@import_app.command("diffusers")
def from_diffusers(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder with a UNet2DModel.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Import a pipeline of diffusers: its network and its schedule of betas."""
    begin("reading the pipeline", as_json)
    from cli.actions import model_formats

    model_formats.import_diffusers_model(folder, out, as_json)


@export_app.command("diffusers")
def diffusers(
    folder: Annotated[Path, folder_argument(help="The pipeline folder to make.")],
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Export UNet2DModel and DDIMScheduler, which DDIMPipeline.from_pretrained loads."""
    begin("loading the model", as_json)
    from cli.actions import model_formats

    model_formats.export_diffusers_model(folder, model, run_id, champion, as_json)


def ema(
    width: Annotated[
        str, typer.Option("--width", "-w", help="Widths σ_rel, a comma between them, such as 0.05,0.1,0.2.")
    ],
    source: Annotated[Path, typer.Option("--from", help="The folder of snapshots.")] = AVERAGES,
    out: Annotated[
        Path, folder_option("--out", "-o", help="The folder of the model files, which stays.")
    ] = Path("models"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make models with power-function EMAs of any width from the snapshots of a training."""
    begin("reading the snapshots", as_json)
    from cli.actions import ema_files

    ema_files.make_ema_models(width, source, out, as_json)
