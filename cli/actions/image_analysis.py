"""Images encoded as noise and images between two of them, and bits per dimension of images."""

import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cli.actions.model_choice import selected_model
from cli.commands.images import Encode, Interpolate, Nll
from cli.shared.options import Spacing
from cli.shared.progress import Show, progress
from diffusion.analysis import inversion
from diffusion.analysis.image_inputs import (
    end_condition,
    input_condition,
    known_labels,
    load_first,
    load_input,
    open_matching_store,
)
from diffusion.analysis.inversion import decode_images, encode_images
from diffusion.analysis.likelihood import Bits, bits_per_dimension
from diffusion.images.pictures import enlarge, gif_bytes, grid, png_bytes
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.process.condition import Condition
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import OnStep
from diffusion.system.devices import default_device
from diffusion.system.output_paths import write_output, write_output_text


def encode(options: Encode) -> None:
    """Carry out `diffctl encode`."""
    loaded, settings = _load(selected_model(options), options.steps, options.spacing)
    artefact = loaded.artefact
    chosen = (
        [load_input(name, options.store, artefact) for name in options.images]
        if options.images
        else load_first(options.num, options.store, artefact)
    )
    pixels = np.stack([image.pixels for image in chosen])
    condition = input_condition(artefact, [image.label for image in chosen], options.klass)
    with progress("encode", unit="steps") as show:
        codes, back = _encode_and_decode(loaded, settings, pixels, condition, options.batch_size, show)
    writer = _npz if options.out.suffix == ".npz" else _png
    writer(options.out, pixels, codes, back, condition.labels)
    error = float(np.abs(back.astype(int) - pixels).mean())
    made = {
        "out": str(options.out),
        "images": len(pixels),
        "steps": options.steps,
        "mean_pixel_error": round(error, 4),
    }
    text = f"{len(pixels)} image(s), mean reconstruction error {error:.2f} of 255: {options.out}"
    options.answer(made, text)


def interpolate(options: Interpolate) -> None:
    """Carry out `diffctl interpolate`."""
    loaded, settings = _load(selected_model(options), options.steps, options.spacing)
    ends = [load_input(name, options.store, loaded.artefact) for name in (options.first, options.second)]
    condition = end_condition(loaded.artefact, [end.label for end in ends], options.klass)
    pixels = np.stack([end.pixels for end in ends])
    with progress("interpolate", unit="steps") as show:
        on_step = _counter(show, 2 * settings.steps)
        strip = inversion.interpolate(loaded, settings, pixels, condition, options.frames, on_step)
    writer = _strip if options.out.suffix == ".png" else _morph
    writer(options.out, to_nhwc(strip))
    made = {"out": str(options.out), "frames": options.frames, "steps": options.steps}
    text = f"{options.frames} images from {options.first} to {options.second}: {options.out}"
    options.answer(made, text)


def _load(path: Path, steps: int, spacing: Spacing) -> tuple[LoadedModel, SampleSettings]:
    return load_model(path, default_device()), SampleSettings(steps=steps, spacing=spacing.value)


def _encode_and_decode(
    loaded: LoadedModel,
    settings: SampleSettings,
    pixels: Images,
    condition: Condition,
    batch_size: int,
    show: Show,
) -> tuple[Tensor, Images]:
    """Return the codes of the images and their reconstructions."""
    codes, back = [], []
    on_step = _counter(show, 2 * settings.steps * -(-len(pixels) // batch_size))
    for start in range(0, len(pixels), batch_size):
        part = slice(start, start + batch_size)
        wanted = condition.rows(part)
        codes.append(encode_images(loaded, settings, pixels[part], wanted, on_step))
        back.append(decode_images(loaded, settings, codes[-1], wanted, on_step))
    return torch.cat(codes), to_nhwc(torch.cat(back))


def _counter(show: Show, total: int) -> OnStep:
    """Return what shows the number of its calls."""
    done = itertools.count(1)
    return lambda step: show(next(done), total, "")


def _npz(out: Path, pixels: Images, codes: Tensor, back: Images, labels: Tensor | None) -> None:
    """Write codes (N, C, H, W) float32, images and reconstructions (N, H, W, C) uint8, labels (N,) if any."""
    arrays = {"codes": codes.numpy(), "images": pixels, "reconstructions": back}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    write_output(out, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # numpy's stub


def _png(out: Path, pixels: Images, codes: Tensor, back: Images, labels: Tensor | None) -> None:
    """Write three rows: images, codes (±2 σ from black to white) and reconstructions."""
    _strip(out, np.concatenate([pixels, to_nhwc(to_uint8(codes / 2)), back]), columns=len(pixels))


def _strip(out: Path, images: Images, columns: int | None = None) -> None:
    """Write the images in rows of `columns`, by default in one row."""
    picture = enlarge(grid(images, columns or len(images)), images.shape[1])
    write_output(out, lambda file: file.write(png_bytes(picture)))


def _morph(out: Path, images: Images) -> None:
    write_output(out, lambda file: file.write(gif_bytes([enlarge(image, len(image)) for image in images])))


def compute_nll(options: Nll) -> None:
    """Carry out `diffctl nll`."""
    loaded = load_model(selected_model(options), default_device())
    images = open_matching_store(options.store, loaded.artefact)
    count = min(options.num or len(images), len(images))
    condition = input_condition(loaded.artefact, known_labels(images, loaded.artefact, range(count)), None)
    with progress("nll", unit="terms") as show:
        bits = bits_per_dimension(
            loaded,
            images.images[:count],
            condition,
            steps=options.steps,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=lambda done, total: show(done, total, ""),
        )
    _write_bits(options.out, bits)
    mean = float(bits.total.mean())
    error = float(bits.total.std() / count**0.5) if count > 1 else None
    made = {
        "estimate": bits.estimate,
        "bits_per_dimension": mean,
        "standard_error": error,
        "prior": float(bits.prior.mean()),
        "images": count,
        "timesteps": len(bits.times),
        "out": str(options.out),
    }
    spread = "" if error is None else f" ± {error:.4f}"
    found = f"{mean:.4f}{spread} bits per dimension ({bits.estimate})"
    options.answer(made, f"{found} over {count:,} images of {images.path}: {options.out}")


def _write_bits(out: Path, bits: Bits) -> None:
    """Write the terms by t as PNG and CSV."""
    rows = [f"{t:.8g},{term:.8g}" for t, term in zip(bits.times.tolist(), bits.terms.tolist(), strict=True)]
    write_output_text(out.with_suffix(".csv"), "\n".join(["t,bits_per_dimension", *rows]) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if bits.estimate == "vlb":
        times, axis, name = bits.times + 1, {"xlabel": "t + 1", "yscale": "log"}, "the bound"
    else:  # terms of any sign, at times above 0
        times, axis, name = bits.times, {"xlabel": "t"}, "the ODE"
    axes.plot(times, bits.terms, marker="." if len(bits.terms) < 50 else "")
    axes.set(xscale="log", ylabel="bits per dimension", **axis)
    axes.set_title(f"terms of {name}: {float(bits.total.mean()):.3f} bits per dimension in all")
    axes.grid(alpha=0.3)
    write_output(out, lambda file: figure.savefig(file, format="png", dpi=120))
