"""Models in the formats of other projects."""

import json
from pathlib import Path

import typer
from torch import Tensor

from cli.actions.model_choice import selected_model
from cli.shared.options import Preset, Selection
from diffusion.check.pretrained_shape import format_sections, sections_of
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.from_openai import import_openai
from diffusion.interop.to_diffusers import export_diffusers
from diffusion.model.model_file import Artefact, load_model, save_artefact
from diffusion.system.output_paths import check_output, check_output_folder, write_output


def import_openai_model(file: Path, preset: Preset, out: Path | None, as_json: bool) -> None:
    """Carry out `diffctl openai`."""
    out = _output_path(out, file.stem)
    _save(out, *import_openai(file, preset.value), {"preset": preset.value}, as_json)


def import_diffusers_model(folder: Path, out: Path | None, as_json: bool) -> None:
    """Carry out `diffctl from_diffusers`."""
    out = _output_path(out, folder.resolve().name)
    weights, artefact = import_diffusers(folder)
    _save(out, weights, artefact, {"schedule": artefact.process.schedule}, as_json)


def export_diffusers_model(folder: Path, selection: Selection, as_json: bool) -> None:
    """Carry out `diffctl diffusers`."""
    check_output_folder(folder, "FOLDER")
    export_diffusers(load_model(selected_model(selection)), folder)
    text = f"pipeline: {folder}, see {folder / 'README.md'}"
    typer.echo(json.dumps({"out": str(folder)}) if as_json else text)


def _output_path(out: Path | None, name: str) -> Path:
    """Return the path of the model file, checked before the work."""
    out = out or Path("models") / f"{name}.safetensors"
    check_output(out, "--out")
    return out


def _save(
    out: Path, weights: dict[str, Tensor], artefact: Artefact, what: dict[str, str], as_json: bool
) -> None:
    """Write the model file and print its description."""
    save_artefact(out, weights, artefact, write_output)
    parameters = sum(tensor.numel() for tensor in weights.values())
    sections, kinds = sections_of(artefact), ", ".join(what.values())
    made = {"out": str(out), **what, "parameters": parameters, **sections}
    text = (
        f"{parameters / 1e6:,.1f} M parameters of {kinds}: {out}, for use with --model.\n"
        f"A training that starts from it (`diffctl use --init-from {out}`) has in params.yaml:\n"
        f"{format_sections(sections)}"
    )
    typer.echo(json.dumps(made) if as_json else text)
