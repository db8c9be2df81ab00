"""The variational bound of images."""

import json
from pathlib import Path

import typer
from matplotlib.figure import Figure

from cli.actions.model_choice import selected_model
from cli.commands.images import Nll
from cli.shared.progress import progress
from diffusion.analysis.image_inputs import input_condition, known_labels, open_matching_store
from diffusion.analysis.likelihood import Bits, bits_per_dimension
from diffusion.model.model_file import load_model
from diffusion.system.devices import default_device
from diffusion.system.output_paths import write_output, write_output_text


def compute_nll(options: Nll) -> None:
    """Carry out `diffctl nll`."""
    loaded = load_model(selected_model(options), default_device())
    images = open_matching_store(options.store, loaded.artefact)
    count = min(options.num or len(images), len(images))
    condition = input_condition(loaded.artefact, known_labels(images, loaded.artefact, range(count)), None)
    with progress("nll", unit="passes") as show:
        bits = bits_per_dimension(
            loaded,
            images.images[:count],
            condition,
            steps=options.steps,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=lambda done, total: show(done, total, ""),
        )
    _write(options.out, bits)
    mean = float(bits.total.mean())
    error = float(bits.total.std() / count**0.5) if count > 1 else None
    made = {
        "bits_per_dimension": mean,
        "standard_error": error,
        "prior": float(bits.prior.mean()),
        "images": count,
        "timesteps": len(bits.timesteps),
        "out": str(options.out),
    }
    spread = "" if error is None else f" ± {error:.4f}"
    text = f"{mean:.4f}{spread} bits per dimension over {count:,} images of {images.path}: {options.out}"
    typer.echo(json.dumps(made) if options.as_json else text)


def _write(out: Path, bits: Bits) -> None:
    """Write the terms by t as PNG and CSV."""
    rows = [f"{t},{term:.8g}" for t, term in zip(bits.timesteps.tolist(), bits.terms.tolist(), strict=True)]
    write_output_text(out.with_suffix(".csv"), "\n".join(["t,bits_per_dimension", *rows]) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(bits.timesteps + 1, bits.terms, marker="." if len(bits.terms) < 50 else "")
    axes.set(xscale="log", yscale="log", xlabel="t + 1", ylabel="bits per dimension")
    axes.set_title(f"terms of the bound: {float(bits.total.mean()):.3f} bits per dimension in all")
    axes.grid(alpha=0.3)
    write_output(out, lambda file: figure.savefig(file, format="png", dpi=120))
