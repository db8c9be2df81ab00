"""Models from and for other projects, and models with other EMA profiles from the snapshots of a training."""

import hashlib
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor

from cli.models.model_choice import selected_model
from cli.models.model_commands import (
    Ema,
    ExportDiffusers,
    ImportDiffusers,
    ImportOpenai,
    ImportOptions,
    WeightsInception,
)
from cli.shared.console import progress
from diffusion.check.params_changes import format_sections, sections_of
from diffusion.downloads.fetch import cache_root
from diffusion.interop.from_diffusers import import_diffusers
from diffusion.interop.from_inception import import_inception
from diffusion.interop.from_openai import import_openai
from diffusion.interop.to_diffusers import export_diffusers
from diffusion.layout import check_output_file
from diffusion.model.model_file import Artefact, load_model, save_artefact
from diffusion.model.posthoc_ema import Snapshots
from diffusion.protocol.extractors import INCEPTION
from diffusion.system.errors import UsageError, printable
from diffusion.system.limits import MAX_SIGMA_REL, MIN_SIGMA_REL
from diffusion.system.output_paths import check_output_folder, write_output
from diffusion.system.section import SigmaRel


def import_openai_model(options: ImportOpenai) -> None:
    preset = options.preset.value
    _save(options, options.file.stem, *import_openai(options.file, preset), preset=preset)


def import_diffusers_model(options: ImportDiffusers) -> None:
    weights, artefact = import_diffusers(options.folder)
    name = options.folder.resolve().name
    _save(options, name, weights, artefact, schedule=artefact.process.schedule)


def export_diffusers_model(options: ExportDiffusers) -> None:
    folder = options.folder
    check_output_folder(folder, "FOLDER")
    export_diffusers(load_model(selected_model(options)), folder)
    options.answer({"out": folder}, f"pipeline: {folder}, see {folder / 'README.md'}")


def convert_inception(options: WeightsInception) -> None:
    out = options.out or cache_root() / "weights/inception-2015-12-05.safetensors"
    check_output_file(out, "--out")
    content = save(import_inception(options.file))
    write_output(out, lambda file: file.write(content))
    section = {"weights": str(out), "weights_sha256": hashlib.sha256(content).hexdigest()}
    flags = " ".join(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in section.items())
    lines = "".join(f"\n  {name}: {value}" for name, value in section.items())
    options.answer(
        {"out": out, **section},
        f"Inception's weights: {out}\n`diffctl evaluate` takes them by --extractor {INCEPTION.name} {flags}\n"
        f"and params.yaml by\nevaluate:\n  extractor: {INCEPTION.name}{lines}",
    )


def _save(
    options: ImportOptions, name: str, weights: dict[str, Tensor], artefact: Artefact, **what: str
) -> None:
    """Write the model file, by default models/NAME.safetensors, and print its description."""
    out = options.out or Path("models") / f"{name}.safetensors"
    check_output_file(out, "--out")
    save_artefact(out, weights, artefact, write_output)
    parameters = sum(tensor.numel() for tensor in weights.values())
    sections, kinds = sections_of(artefact), ", ".join(what.values())
    text = (
        f"{parameters / 1e6:,.1f} M parameters of {kinds}: {out}, for use with --model.\n"
        f"A training that starts from it (`diffctl use --init-from {out}`) has in params.yaml:\n"
        f"{format_sections(sections)}"
    )
    options.answer({"out": out, **what, "parameters": parameters, **sections}, text)


def make_ema_models(options: Ema) -> None:
    files = {one: options.out / f"ema-{one:g}.safetensors" for one in _sigma_rels(options.sigma_rel)}
    if options.out.resolve() == options.source.resolve():
        raise UsageError(f"--out {printable(options.out)} has the snapshots: name another folder")
    for file in files.values():
        check_output_file(file, "--out")
    snapshots = Snapshots.of(options.source)
    made: list[dict[str, Any]] = []
    with progress("ema", unit="models") as show:
        for width, file in files.items():
            artefact = save_artefact(file, *snapshots.reconstruct(width), write_output)
            about = {"model_sha256": artefact.model_sha256, "step": artefact.step}
            made.append({"sigma_rel": width, "out": file, **about, "error": snapshots.fit(width).error})
            show(len(made), len(files), "")
    tracked = ", ".join(f"{one:g}" for one in snapshots.sigma_rels)
    lines = [f"from {len(snapshots.paths)} snapshots of {tracked} in {options.source}:"]
    lines += [f"σ_rel {one['sigma_rel']:g}: {one['out']}, profile error {one['error']:.2%}" for one in made]
    options.answer(made, "\n".join(lines))


def _sigma_rels(text: str) -> list[float]:
    """Parse the σ_rel without duplicates; UsageError if one is invalid."""
    try:
        return list(dict.fromkeys(TypeAdapter(list[SigmaRel]).validate_python(text.split(","))))
    except ValidationError:
        limits = f"{MIN_SIGMA_REL} to {MAX_SIGMA_REL}"
        raise UsageError(f"--sigma-rel {printable(text)}: give σ_rel from {limits}, with commas") from None
