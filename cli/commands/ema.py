"""`diffctl ema`: models of other averages of a training's weights, made after it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.first_word import begin
from cli.shared.outputs import folder_option
from cli.shared.progress import progress
from diffusion.layout import AVERAGES

if TYPE_CHECKING:
    from diffusion.model.posthoc_ema import Snapshots


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
    from diffusion.model.posthoc_ema import Snapshots

    widths = _widths(width)
    _try(out, widths)
    snapshots = Snapshots.of(source)
    made = []
    with progress("ema", unit="models") as show:
        for done, one in enumerate(widths, 1):
            made.append(_make(snapshots, one, _file(out, one)))
            show(done, len(widths), "")
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    tracked = ", ".join(f"{one:g}" for one in snapshots.widths)
    typer.echo(f"from {len(snapshots.paths)} snapshots of {tracked} in {source}:")
    for model in made:
        typer.echo(f"width {model['width']:g}: {model['out']}, its profile missed by {model['error']:.2%}")


def _make(snapshots: "Snapshots", width: float, out: Path) -> dict[str, Any]:
    """Write the model file of a width; returns what is said of it."""
    from diffusion.model.model_file import save_artefact
    from diffusion.system.output_paths import write_output

    artefact = save_artefact(out, *snapshots.reconstruct(width), write_output)
    return {
        "width": width,
        "out": str(out),
        "model_sha256": artefact.model_sha256,
        "step": artefact.step,
        "error": snapshots.fit(width).error,
    }


def _try(out: Path, widths: list[float]) -> None:
    """UsageError where the files cannot be written."""
    from diffusion.system.output_paths import check_output

    for width in widths:
        check_output(_file(out, width), "--out")


def _file(out: Path, width: float) -> Path:
    return out / f"ema-{width:g}.safetensors"


def _widths(text: str) -> list[float]:
    """The widths that are asked for, each once; UsageError where they are none."""
    from pydantic import TypeAdapter, ValidationError

    from diffusion.model.power_ema import MAX_SIGMA_REL, MIN_SIGMA_REL, SigmaRel
    from diffusion.system.errors import UsageError, printable

    try:
        return list(dict.fromkeys(TypeAdapter(list[SigmaRel]).validate_python(text.split(","))))
    except ValidationError:
        raise UsageError(
            f"--width {printable(text)}: give widths from {MIN_SIGMA_REL} to {MAX_SIGMA_REL}, with commas"
        ) from None
