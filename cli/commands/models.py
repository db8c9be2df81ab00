"""`diffctl import` and `export`: formats of other projects; `diffctl ema`: other EMA profiles."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import (
    AsJson,
    Champion,
    ModelFile,
    Preset,
    RunId,
    Selection,
    file_option,
    folder_argument,
    folder_option,
)
from cli.shared.startup_message import begin
from diffusion.layout import AVERAGES

Out = Annotated[
    Path | None, file_option("--out", "-o", help="Output file. [default: models/NAME.safetensors]")
]


import_app = typer.Typer(name="import", help="Import a model of another project.", no_args_is_help=True)


export_app = typer.Typer(name="export", help="Export a model for another project.", no_args_is_help=True)


@export_app.callback()
def _export() -> None:
    """Export a model for another project."""


@import_app.command("openai")
def openai(
    file: Annotated[Path, typer.Argument(help="A .pt file of guided-diffusion or improved-diffusion.")],
    preset: Annotated[Preset, typer.Option("--preset", help="Its architecture.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Import a published checkpoint without executing code from it."""
    begin("reading the checkpoint", as_json)
    from cli.actions import model_formats

    model_formats.import_openai_model(file, preset, out, as_json)


@import_app.command("diffusers")
def from_diffusers(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder with a UNet2DModel.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Import a diffusers pipeline: its network and beta schedule."""
    begin("reading the pipeline", as_json)
    from cli.actions import model_formats

    model_formats.import_diffusers_model(folder, out, as_json)


@export_app.command("diffusers")
def diffusers(
    folder: Annotated[Path, folder_argument(help="The new pipeline folder.")],
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Export a pipeline for DDIMPipeline.from_pretrained."""
    begin("loading the model", as_json)
    from cli.actions import model_formats

    model_formats.export_diffusers_model(folder, Selection(model, run_id, champion), as_json)


def ema(
    sigma_rel: Annotated[
        str, typer.Option("--sigma-rel", help="Widths of the EMA profiles, such as 0.05,0.1,0.2.")
    ],
    source: Annotated[Path, typer.Option("--from", help="The folder of snapshots.")] = AVERAGES,
    out: Annotated[Path, folder_option("--out", "-o", help="The folder of the model files.")] = Path(
        "models"
    ),
    as_json: AsJson = False,
) -> None:
    """Make models with other EMA profiles from a training's snapshots."""
    begin("reading the snapshots", as_json)
    from cli.actions import ema_files

    ema_files.make_ema_models(sigma_rel, source, out, as_json)
