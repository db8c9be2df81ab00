"""`diffctl nll`: bits per dimension of a data set, and where they come from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, resolve_model
from cli.shared.first_word import begin
from cli.shared.images import StorePath
from cli.shared.outputs import file_option, writer_of
from cli.shared.progress import progress
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_SEED, MAX_STEPS

if TYPE_CHECKING:
    from diffusion.analysis.likelihood import Bits


def nll(
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png, the terms by t; their values go to a .csv beside it."),
    ] = Path("plots/nll.png"),
    store: StorePath = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_COUNT, help="Images. [default: all]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, max=MAX_STEPS, help="Timesteps, evenly spread. [default: all T]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The seed of the noise.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images at a time.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Bound the negative log-likelihood of images, in bits per dimension: one pass over all timesteps."""
    begin("loading the model", as_json)
    from diffusion.analysis.image_inputs import input_condition, known_labels, open_matching_store
    from diffusion.analysis.likelihood import bits_per_dimension
    from diffusion.model.model_file import load_model
    from diffusion.system.devices import default_device
    from diffusion.system.output_paths import check_output

    writer = writer_of(out, {".png": _write})
    check_output(out.with_suffix(".csv"), "--out, as .csv,")
    loaded = load_model(resolve_model(model, run_id, champion), default_device())
    images = open_matching_store(store, loaded.artefact)
    count = min(num or len(images), len(images))
    condition = input_condition(loaded.artefact, known_labels(images, loaded.artefact, range(count)), None)
    with progress("nll", unit="passes") as show:
        bits = bits_per_dimension(
            loaded,
            images.images[:count],
            condition,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            progress=lambda done, total: show(done, total, ""),
        )
    writer(out, bits)
    mean = float(bits.total.mean())
    error = float(bits.total.std() / count**0.5) if count > 1 else None  # one image has no spread
    made = {
        "bits_per_dimension": mean,
        "standard_error": error,
        "prior": float(bits.prior.mean()),
        "images": count,
        "timesteps": len(bits.timesteps),
        "out": str(out),
    }
    spread = "" if error is None else f" ± {error:.4f}"
    said = f"{mean:.4f}{spread} bits per dimension over {count:,} images of {images.path}: {out}"
    typer.echo(json.dumps(made) if as_json else said)


def _write(out: Path, bits: "Bits") -> None:
    """The terms by t as a picture and as CSV."""
    from matplotlib.figure import Figure

    from diffusion.system.output_paths import write_output, write_output_text

    rows = [f"{t},{term:.8g}" for t, term in zip(bits.timesteps.tolist(), bits.terms.tolist(), strict=True)]
    write_output_text(out.with_suffix(".csv"), "\n".join(["t,bits_per_dimension", *rows]) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(bits.timesteps + 1, bits.terms, marker="." if len(bits.terms) < 50 else "")
    axes.set(xscale="log", yscale="log", xlabel="t + 1", ylabel="bits per dimension")
    axes.set_title(f"terms of the bound: {float(bits.total.mean()):.3f} bits per dimension in all")
    axes.grid(alpha=0.3)
    write_output(out, lambda file: figure.savefig(file, format="png", dpi=120))
