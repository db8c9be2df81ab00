"""Images from one model, sampled in batches and written to a file."""

import math

import numpy as np

from cli.actions.images.enlarged_images import side_by_side, with_pictures
from cli.actions.model_choice import given_options, selected_source
from cli.commands.models import Sample
from cli.shared.console import progress
from diffusion.images.pictures import MAX_PIXELS, contact_sheet, gif_bytes, png_bytes
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images, save_npz
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import check_settings, generate, should_compile, with_base_images
from diffusion.sample.guides import Guides
from diffusion.sample.sampler import Step
from diffusion.sample.sampling_card import nfe_fields
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output
from tracking.recipes import find_settings, recipe_of

GIF_FRAMES = 60  # at most


def sample_images(options: Sample) -> None:
    source, given = selected_source(options), given_options(options.sampling)
    settings, origins = find_settings(source, given, options.budget)
    if options.low_res is not None:
        settings = settings.model_copy(update={"base": None})
    check_settings(source.artefact, settings)
    pixels = len(options.indices) * math.prod(source.artefact.network.size)
    if options.scale and pixels * options.scale**2 > MAX_PIXELS:
        limit = f"{MAX_PIXELS >> 20} million pixels"
        raise UsageError(f"--scale {options.scale}: the picture would have over {limit}: give a smaller one")
    recipe = recipe_of(source, settings, given, with_images=options.low_res is None)
    loaded, guides = recipe.load(default_device())
    condition = image_condition(loaded, settings, options.indices, guides, options.klass)
    if options.low_res is not None:
        condition = with_pictures(options.low_res, loaded, condition, options.indices)
    _write(options, *_sample_frames(options, loaded, guides, settings, condition), guides)
    text = f"{len(options.indices)} image(s) of {loaded.artefact.data.name}: {options.out}"
    cell = describe_cell(effective_axes(settings))
    if options.budget is not None:
        text = f"{cell}, the best of its sweep for {options.budget} NFE\n{text}"
    elif "sweep" in origins.values():
        text = f"{cell}: settings without an option are those of the best cell\n{text}"
    labels = None if condition.labels is None else condition.labels.tolist()
    made = {"out": options.out, "indices": list(options.indices), "labels": labels}
    artefact, base = loaded.artefact, guides.base and guides.base.artefact
    made |= {"model_sha256": artefact.model_sha256, **nfe_fields(settings, artefact, base)}
    options.answer({**made, **settings.model_dump(mode="json"), "origins": origins}, text)


def _sample_frames(
    options: Sample, loaded: LoadedModel, guides: Guides, settings: SampleSettings, condition: Condition
) -> tuple[list[Images], Condition]:
    """Return the frames (N, H, W, C) of a GIF, or a single one; the last one has the images.

    The condition has the images of a base model, if there is one.
    """
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

    batches, conditions = [], []
    with progress("sample") as show:
        for start in range(0, count, size):
            show(start, count)
            part = slice(start, start + size)
            indices, rows = options.indices[part], condition.rows(part)
            conditions.append(with_base_images(loaded, settings, indices, rows, device, guides))
            batches.append(sample_batch(indices, conditions[-1]))
        show(count, count)
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)], Condition.cat(conditions)


def _write(options: Sample, frames: list[Images], condition: Condition, guides: Guides) -> None:
    """Write the last frame as PNG or npz, or all frames as GIF; a PNG shows what was enlarged."""
    if options.out.suffix == ".npz":
        labels = None if condition.labels is None else condition.labels.tolist()
        return write_output(options.out, lambda file: save_npz(file, frames[-1], labels))
    if options.out.suffix == ".png" and condition.low_res is not None:
        real = guides.real and guides.real.images(options.indices, condition, options.klass)
        picture = side_by_side(condition.low_res, frames[-1], real, options.scale)
        return write_output(options.out, lambda file: file.write(png_bytes(picture)))
    sheets = [contact_sheet(frame, options.scale) for frame in frames]
    data = gif_bytes(sheets) if options.out.suffix == ".gif" else png_bytes(sheets[-1])
    write_output(options.out, lambda file: file.write(data))
