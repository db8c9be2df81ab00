"""Images from one model, sampled in batches and written to a file."""

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from cli.actions.model_choice import (
    chosen_settings,
    given_options,
    selected_files,
    selected_model,
    selected_scores,
)
from cli.commands.models import Sample
from cli.shared.console import progress
from diffusion.choice.selection import budget_settings, usual_settings
from diffusion.images.pictures import (
    MAX_PIXELS,
    SUFFIXES,
    contact_sheet,
    gif_bytes,
    png_bytes,
    read_picture,
)
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, save_npz
from diffusion.model.model_file import LoadedModel, load_model, read_artefact
from diffusion.process.denoiser import Condition
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import check_settings, generate, image_condition, should_compile
from diffusion.sample.guidance import Guides
from diffusion.sample.network_files import load_guides
from diffusion.sample.sampler import Step
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output
from tracking.runs.base_models import fetch_base

GIF_FRAMES = 60  # at most


def sample_images(options: Sample) -> None:
    path, device = selected_model(options), default_device()
    usual: dict[str, Any] = {}
    if options.budget is None and (options.champion or options.run_id is not None):
        with suppress(UsageError):  # it was not evaluated
            usual = usual_settings(selected_scores(options), given_options(options.sampling))
    settings = chosen_settings(options.sampling, usual)
    fetch_base(settings.base)
    if options.budget is not None:
        scores, digest = selected_scores(options), read_artefact(path).model_sha256
        settings = budget_settings(scores, options.budget, settings.seed, path, digest)
    loaded = load_model(path, device)
    check_settings(loaded.artefact, settings)
    pixels = len(options.indices) * math.prod(loaded.artefact.network.size)
    if options.scale and pixels * options.scale**2 > MAX_PIXELS:
        limit = f"{MAX_PIXELS >> 20} million pixels"
        raise UsageError(f"--scale {options.scale}: the picture would have over {limit}: give a smaller one")
    guides = load_guides(selected_files(options, settings, path), device)
    condition = _condition(options, loaded, guides, settings)
    _write(options, _sample_frames(options, loaded, guides, settings, condition), condition)
    text = f"{len(options.indices)} image(s) of {loaded.artefact.data.name}: {options.out}"
    cell = describe_cell(effective_axes(settings))
    if options.budget is not None:
        text = f"{cell}, the best of its sweep for {options.budget} NFE\n{text}"
    elif usual:
        text = f"{cell}: settings without an option are those of the best cell\n{text}"
    made = {"out": options.out, "indices": list(options.indices), **settings.model_dump(mode="json")}
    options.answer(made, text)


def _condition(options: Sample, loaded: LoadedModel, guides: Guides, settings: SampleSettings) -> Condition:
    """Return the condition of the images; UsageError for pictures that the model does not enlarge."""
    if options.low_res is None:
        return image_condition(loaded, settings, options.indices, guides, options.klass)
    spec = loaded.artefact.network
    if spec.low_res_size is None:
        raise UsageError("--low-res is for a model that enlarges images (model.low_res): leave it out")
    files = sorted(path for path in options.low_res.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(
            f"--low-res {options.low_res} has no pictures: give a folder of {'/'.join(SUFFIXES)}"
        )
    chosen = [files[index % len(files)] for index in options.indices]
    pictures = {file: read_picture(file, spec.low_res_size, spec.in_channels) for file in set(chosen)}
    given = to_model(to_nchw(np.stack([pictures[file] for file in chosen])))
    guides = guides._replace(real=None)
    condition = image_condition(loaded, settings, options.indices, guides, options.klass)
    return replace(condition, low_res=given)


def _sample_frames(
    options: Sample, loaded: LoadedModel, guides: Guides, settings: SampleSettings, condition: Condition
) -> list[Images]:
    """Return the frames (N, H, W, C) of a GIF, or a single one; the last one has the images."""
    device = next(loaded.network.parameters()).device
    count, size = len(options.indices), options.batch_size
    fast = should_compile(loaded.artefact, settings, -(-count // size), device)
    every = -(-settings.steps // GIF_FRAMES)

    def sample_batch(indices: range, condition: Condition) -> list[Images]:
        frames: list[Images] = []

        def keep(step: Step) -> None:
            if step.done % every == 0 or step.done == step.total:
                frames.append(to_nhwc(to_uint8(step.x)))

        watch = keep if options.out.suffix == ".gif" else None
        images = generate(loaded, settings, indices, condition, device, watch, guides, fast=fast)
        return frames or [to_nhwc(images)]

    batches = []
    with progress("sample") as show:
        for start in range(0, count, size):
            show(start, count)
            part = slice(start, start + size)
            batches.append(sample_batch(options.indices[part], condition.rows(part)))
        show(count, count)
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _write(options: Sample, frames: list[Images], condition: Condition) -> None:
    """Write the last frame as PNG or npz, or all frames as GIF."""
    if options.out.suffix == ".npz":
        labels = None if condition.labels is None else condition.labels.tolist()
        return write_output(options.out, lambda file: save_npz(file, frames[-1], labels))
    sheets = [contact_sheet(frame, options.scale) for frame in frames]
    data = gif_bytes(sheets) if options.out.suffix == ".gif" else png_bytes(sheets[-1])
    write_output(options.out, lambda file: file.write(data))
