"""`diffctl import` and `diffctl export`: models from other projects, and for them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, resolve_model
from cli.shared.names import Preset
from cli.shared.outputs import file_option, folder_argument

AsJson = Annotated[bool, typer.Option("--json", help="Say what was made as JSON.")]

import_app = typer.Typer(help="Turn another project's model into a model file.", no_args_is_help=True)
export_app = typer.Typer(help="Write a model in another project's format.", no_args_is_help=True)


@import_app.callback()
def _import() -> None:
    """Keep `openai` a subcommand while it is the only one."""


@export_app.callback()
def _export() -> None:
    """Keep `diffusers` a subcommand while it is the only one."""


@import_app.command("openai")
def openai(
    file: Annotated[Path, typer.Argument(help="A .pt file of guided-diffusion or improved-diffusion.")],
    preset: Annotated[Preset, typer.Option("--preset", help="Its shape.")],
    out: Annotated[
        Path | None,
        file_option("--out", "-o", help="The model file. [default: models/NAME.safetensors]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a published checkpoint; it is read without running any code in it."""
    from diffusion.interop.openai import import_openai
    from diffusion.model.model_file import save_artefact
    from diffusion.system.outputs import try_output, write_output

    out = out or Path("models") / f"{file.stem}.safetensors"
    try_output(out, "--out")
    weights, artefact = import_openai(file, preset.value)
    save_artefact(out, weights, artefact, write_output)
    parameters = sum(tensor.numel() for tensor in weights.values())
    made = {"out": str(out), "preset": preset.value, "parameters": parameters}
    said = f"{parameters / 1e6:,.1f} M parameters of {preset.value}: {out}, to be used with --model"
    typer.echo(json.dumps(made) if as_json else said)


@export_app.command("diffusers")
def diffusers(
    folder: Annotated[Path, folder_argument(help="The pipeline folder to make.")],
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Export UNet2DModel and DDIMScheduler, which DDIMPipeline.from_pretrained loads."""
    from diffusion.interop.diffusers import export_diffusers
    from diffusion.model.model_file import load_model
    from diffusion.system.outputs import try_output_folder

    try_output_folder(folder, "FOLDER")
    export_diffusers(load_model(resolve_model(model, run_id, champion)), folder)
    said = f"pipeline: {folder}, its use is in {folder / 'README.md'}"
    typer.echo(json.dumps({"out": str(folder)}) if as_json else said)
