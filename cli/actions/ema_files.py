"""Models with other EMA profiles, from the snapshots of a training."""

import json
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError

from cli.shared.progress import progress
from diffusion.model.model_file import save_artefact
from diffusion.model.posthoc_ema import Snapshots
from diffusion.model.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SigmaRel
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output, write_output


def make_ema_models(width: str, source: Path, out: Path, as_json: bool) -> None:
    """Carry out `diffctl ema`."""
    widths = _widths(width)
    _check_outputs(out, widths)
    snapshots = Snapshots.of(source)
    made = []
    with progress("ema", unit="models") as show:
        for done, one in enumerate(widths, 1):
            made.append(_make(snapshots, one, _file(out, one)))
            show(done, len(widths), "")
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    tracked = ", ".join(f"{one:g}" for one in snapshots.sigma_rels)
    typer.echo(f"from {len(snapshots.paths)} snapshots of {tracked} in {source}:")
    for model in made:
        typer.echo(f"σ_rel {model['sigma_rel']:g}: {model['out']}, profile error {model['error']:.2%}")


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


def _check_outputs(out: Path, widths: list[float]) -> None:
    """Raise UsageError if a file cannot be written."""
    for width in widths:
        check_output(_file(out, width), "--out")


def _file(out: Path, width: float) -> Path:
    return out / f"ema-{width:g}.safetensors"


def _widths(text: str) -> list[float]:
    """Parse the widths without duplicates; UsageError if one is invalid."""
    try:
        return list(dict.fromkeys(TypeAdapter(list[SigmaRel]).validate_python(text.split(","))))
    except ValidationError:
        raise UsageError(
            f"--sigma-rel {printable(text)}: give widths from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}, with commas"
        ) from None
