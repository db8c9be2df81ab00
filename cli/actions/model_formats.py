"""Models from and for other projects, and models with other EMA profiles from the snapshots of a training."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cli.actions.model_choice import selected_model
from cli.commands.models import Ema, ExportDiffusers, ImportDiffusers, ImportOpenai, ImportOptions
from cli.shared.progress import progress
from diffusion.check.pretrained_shape import format_sections, sections_of
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.from_openai import import_openai
from diffusion.interop.to_diffusers import export_diffusers
from diffusion.model.model_file import Artefact, load_model, save_artefact
from diffusion.model.posthoc_ema import Snapshots
from diffusion.model.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SigmaRel
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output, check_output_folder, write_output


def import_openai_model(options: ImportOpenai) -> None:
    """Carry out `diffctl import openai`."""
    out, preset = _output_path(options, options.file.stem), options.preset.value
    _save(options, out, *import_openai(options.file, preset), preset=preset)


def import_diffusers_model(options: ImportDiffusers) -> None:
    """Carry out `diffctl import diffusers`."""
    out = _output_path(options, options.folder.resolve().name)
    weights, artefact = import_diffusers(options.folder)
    _save(options, out, weights, artefact, schedule=artefact.process.schedule)


def export_diffusers_model(options: ExportDiffusers) -> None:
    """Carry out `diffctl export diffusers`."""
    folder = options.folder
    check_output_folder(folder, "FOLDER")
    export_diffusers(load_model(selected_model(options)), folder)
    text = f"pipeline: {folder}, see {folder / 'README.md'}"
    options.answer({"out": str(folder)}, text)


def _output_path(options: ImportOptions, name: str) -> Path:
    """Return the path of the model file, checked before the work."""
    out = options.out or Path("models") / f"{name}.safetensors"
    check_output(out, "--out")
    return out


def _save(
    options: ImportOptions, out: Path, weights: dict[str, Tensor], artefact: Artefact, **what: str
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
    options.answer(made, text)


def make_ema_models(options: Ema) -> None:
    """Carry out `diffctl ema`."""
    files = {one: options.out / f"ema-{one:g}.safetensors" for one in _widths(options.sigma_rel)}
    for file in files.values():
        check_output(file, "--out")
    snapshots = Snapshots.of(options.source)
    made = []
    with progress("ema", unit="models") as show:
        for width, file in files.items():
            made.append(_make(snapshots, width, file))
            show(len(made), len(files), "")
    tracked = ", ".join(f"{one:g}" for one in snapshots.sigma_rels)
    lines = [f"from {len(snapshots.paths)} snapshots of {tracked} in {options.source}:"]
    lines += [f"σ_rel {one['sigma_rel']:g}: {one['out']}, profile error {one['error']:.2%}" for one in made]
    options.answer(made, "\n".join(lines))


def _make(snapshots: Snapshots, width: float, out: Path) -> dict[str, Any]:
    """Write the model file of a profile; return its description."""
    artefact = save_artefact(out, *snapshots.reconstruct(width), write_output)
    return {
        "sigma_rel": width,
        "out": str(out),
        "model_sha256": artefact.model_sha256,
        "step": artefact.step,
        "error": snapshots.fit(width).error,
    }


def _widths(text: str) -> list[float]:
    """Parse the widths without duplicates; UsageError if one is invalid."""
    try:
        return list(dict.fromkeys(TypeAdapter(list[SigmaRel]).validate_python(text.split(","))))
    except ValidationError:
        raise UsageError(
            f"--sigma-rel {printable(text)}: give widths from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}, with commas"
        ) from None
