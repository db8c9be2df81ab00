"""`diffctl import` and `diffctl export`: models from other projects, and for them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, resolve_model
from cli.shared.first_word import begin
from cli.shared.names import Preset
from cli.shared.outputs import file_option, folder_argument

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.model.model_file import Artefact

Out = Annotated[
    Path | None, file_option("--out", "-o", help="The model file. [default: models/NAME.safetensors]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]

import_app = typer.Typer(help="Turn another project's model into a model file.", no_args_is_help=True)
export_app = typer.Typer(help="Write a model in another project's format.", no_args_is_help=True)


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
    from diffusion.interop.from_openai import import_openai

    out = _place(out, file.stem)
    _keep(out, *import_openai(file, preset.value), {"preset": preset.value}, as_json)


@import_app.command("diffusers")
def from_diffusers(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder with a UNet2DModel.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Import a pipeline of diffusers: its network and its schedule of betas."""
    begin("reading the pipeline", as_json)
    from diffusion.interop.from_diffusers import import_diffusers

    out = _place(out, folder.resolve().name)
    weights, artefact = import_diffusers(folder)
    _keep(out, weights, artefact, {"schedule": artefact.process.schedule}, as_json)


def _place(out: Path | None, name: str) -> Path:
    """Where the model file goes, tried before the work."""
    from diffusion.system.output_paths import check_output

    out = out or Path("models") / f"{name}.safetensors"
    check_output(out, "--out")
    return out


def _keep(
    out: Path, weights: "dict[str, Tensor]", artefact: "Artefact", what: dict[str, str], as_json: bool
) -> None:
    """Write the model file, and say what it is."""
    from diffusion.check.pretrained_shape import format_sections, sections_of
    from diffusion.model.model_file import save_artefact
    from diffusion.system.output_paths import write_output

    save_artefact(out, weights, artefact, write_output)
    parameters = sum(tensor.numel() for tensor in weights.values())
    sections, kinds = sections_of(artefact), ", ".join(what.values())
    made = {"out": str(out), **what, "parameters": parameters, **sections}
    said = (
        f"{parameters / 1e6:,.1f} M parameters of {kinds}: {out}, to be used with --model.\n"
        f"A training that starts from it (`diffctl use --start {out}`) has in params.yaml:\n"
        f"{format_sections(sections)}"
    )
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
    begin("loading the model", as_json)
    from diffusion.interop.to_diffusers import export_diffusers
    from diffusion.model.model_file import load_model
    from diffusion.system.output_paths import check_output_folder

    check_output_folder(folder, "FOLDER")
    export_diffusers(load_model(resolve_model(model, run_id, champion)), folder)
    said = f"pipeline: {folder}, its use is in {folder / 'README.md'}"
    typer.echo(json.dumps({"out": str(folder)}) if as_json else said)
