"""Images encoded as noise and images between two of them, and bits per dimension of images."""

import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cli.commands.scores import Nll
from cli.images.image_commands import CodeOptions, Encode, Interpolate
from cli.models.model_choice import given_options, selected_model, selected_source
from cli.shared.console import Show, progress
from diffusion.analysis import image_inputs, inversion
from diffusion.analysis.likelihood import Bits, bits_per_dimension
from diffusion.images.pictures import enlarge, gif_bytes, grid, png_bytes
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.layout import check_output_file
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import OnStep, check_settings
from diffusion.system.devices import default_device
from diffusion.system.output_paths import write_output, write_output_text
from tracking.recipes import find_settings


def encode(options: Encode) -> None:
    loaded, settings = _load(options)
    artefact, size = loaded.artefact, options.batch_size
    chosen = (
        [image_inputs.load_input(name, options.store, artefact) for name in options.images]
        if options.images
        else image_inputs.load_first(options.num, options.store, artefact)
    )
    pixels = np.stack([image.pixels for image in chosen])
    condition = image_inputs.input_condition(
        artefact, [image.label for image in chosen], options.klass, pixels
    )
    codes, decoded = [], []
    with progress("encode", unit="steps") as show:
        on_step = _counter(show, 2 * settings.steps * -(-len(pixels) // size))
        for start in range(0, len(pixels), size):
            part = slice(start, start + size)
            rows = condition.rows(part)
            codes.append(inversion.encode_images(loaded, settings, pixels[part], rows, on_step))
            decoded.append(inversion.decode_images(loaded, settings, codes[-1], rows, on_step))
    back = to_nhwc(torch.cat(decoded))
    scale = check_settings(artefact, settings).initial_noise_scale
    _write_codes(options.out, pixels, torch.cat(codes), scale, back, condition.labels)
    error, count = float(np.abs(back.astype(int) - pixels).mean()), len(pixels)
    resized = [image.resized for image in chosen if image.resized]
    made = {
        "out": options.out,
        "images": count,
        "steps": options.steps,
        "mean_pixel_error": round(error, 4),
        "resized": resized,
    }
    text = f"{count} image(s), mean reconstruction error {error:.2f} of 255: {options.out}"
    options.answer(made, "\n".join([text, *resized]))


def interpolate(options: Interpolate) -> None:
    loaded, settings = _load(options)
    names = options.first, options.second
    ends = [image_inputs.load_input(name, options.store, loaded.artefact) for name in names]
    pixels = np.stack([end.pixels for end in ends])
    labels = [end.label for end in ends]
    condition = image_inputs.end_condition(loaded.artefact, labels, options.klass, pixels)
    with progress("interpolate", unit="steps") as show:
        on_step = _counter(show, (1 + -(-options.frames // inversion.FRAMES_PER_BATCH)) * settings.steps)
        strip = inversion.interpolate(loaded, settings, pixels, condition, options.frames, on_step)
    images = to_nhwc(strip)
    if options.out.suffix == ".gif":
        data = gif_bytes([enlarge(image, image.shape[:2]) for image in images])
        write_output(options.out, lambda file: file.write(data))
    else:
        _write_rows(options.out, images, columns=len(images))
    resized = [end.resized for end in ends if end.resized]
    made = {"out": options.out, "frames": options.frames, "steps": options.steps, "resized": resized}
    text = f"{options.frames} images from {options.first} to {options.second}: {options.out}"
    options.answer(made, "\n".join([text, *resized]))


def _load(options: CodeOptions) -> tuple[LoadedModel, SampleSettings]:
    source, given = selected_source(options), {"steps": options.steps, **given_options(options.sampling)}
    settings = find_settings(source, given, best_cell=False).settings
    return load_model(source.model, default_device()), settings


def _counter(show: Show, total: int) -> OnStep:
    """Return what shows the number of its calls."""
    done = itertools.count(1)
    return lambda step: show(next(done), total, "")


def _write_codes(
    out: Path, pixels: Images, codes: Tensor, scale: float, back: Images, labels: Tensor | None
) -> None:
    """Write codes (N, C, H, W) float32, images and reconstructions (N, H, W, C) uint8, labels (N,) if any.

    As PNG: rows of images, codes (±2 σ from black to white, σ = `scale`) and reconstructions.
    """
    if out.suffix == ".png":
        rows = np.concatenate([pixels, to_nhwc(to_uint8(codes / (2 * scale))), back])
        return _write_rows(out, rows, columns=len(pixels))
    arrays = {"codes": codes.numpy(), "images": pixels, "reconstructions": back}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    write_output(out, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # numpy's stub


def _write_rows(out: Path, images: Images, columns: int) -> None:
    """Write images (N, H, W, C) as a PNG with this many in a row."""
    picture = enlarge(grid(images, columns), images.shape[1:3])
    write_output(out, lambda file: file.write(png_bytes(picture)))


def compute_nll(options: Nll) -> None:
    check_output_file(options.out.with_suffix(".csv"), "--out, as .csv,")
    loaded = load_model(selected_model(options), default_device())
    images = image_inputs.open_matching_store(options.store, loaded.artefact)
    count = min(options.num or len(images), len(images))
    labels = image_inputs.known_labels(images, loaded.artefact, range(count))
    condition = image_inputs.input_condition(loaded.artefact, labels, None, images.images[:count])
    with progress("nll", unit="terms") as show:
        bits = bits_per_dimension(
            loaded,
            images.images[:count],
            condition,
            steps=options.steps,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=show,
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
        "out": options.out,
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
