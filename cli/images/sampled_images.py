"""Sampled and enlarged images of a model, written to a file, and the learned times of few steps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cli.images.image_commands import Grid, Sample
from cli.models.model_choice import given_options, selected_model, selected_source
from cli.shared.console import progress
from diffusion.analysis.learned_times import learned_levels, teacher_settings
from diffusion.images.pictures import (
    MAX_PIXELS,
    SUFFIXES,
    contact_sheet,
    enlarge,
    gif_bytes,
    grid,
    png_bytes,
    read_picture,
)
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, save_npz
from diffusion.layout import check_output_file
from diffusion.model.model_file import LoadedModel, load_model
from diffusion.process.denoiser import Condition
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.learned_grid import LearnedGrids
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import image_condition
from diffusion.sample.generate import check_settings, generate, should_compile, with_base_images
from diffusion.sample.guides import Guides
from diffusion.sample.sampler import Step
from diffusion.sample.sampling_card import nfe_fields
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import write_output, write_output_text
from diffusion.system.section import Steps
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


COLUMNS = 10


def with_pictures(
    folder: Path, loaded: LoadedModel, condition: Condition, indices: Sequence[int]
) -> Condition:
    """Return the condition with the pictures of a folder as low-resolution images: index i has file i mod N.

    UsageError if the model enlarges none, or for pictures of another size.
    """
    spec = loaded.artefact.network
    if spec.low_res_size is None:
        raise UsageError("--low-res is for a model that enlarges images (model.low_res): leave it out")
    found = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"--low-res {folder} is no folder with pictures: give one ({', '.join(SUFFIXES)})")
    chosen = [files[index % len(files)] for index in indices]
    pictures = {file: read_picture(file, spec.low_res_size, spec.in_channels) for file in set(chosen)}
    return replace(condition, low_res=to_model(to_nchw(np.stack([pictures[file] for file in chosen]))))


def side_by_side(low_res: Tensor, images: Images, originals: Images | None, factor: int | None) -> Images:
    """Return a picture with rows of low resolutions, of the images (N, H, W, C), and of their originals."""
    scale = images.shape[1] // low_res.shape[2]
    small = to_nhwc(to_uint8(low_res)).repeat(scale, axis=1).repeat(scale, axis=2)
    kinds = [small, images] if originals is None else [small, images, originals]
    columns, white = min(COLUMNS, len(images)), np.full_like(images[:1], 255)
    rows = []
    for start in range(0, len(images), columns):
        for kind in kinds:
            part = kind[start : start + columns]
            rows += [part, np.repeat(white, columns - len(part), axis=0)]
    return enlarge(grid(np.concatenate(rows), columns), images.shape[1:3], factor)


def learn_grid(options: Grid) -> None:
    wanted, out = _step_counts(options.steps), options.out
    check_output_file(out, "--out")
    loaded = load_model(selected_model(options), default_device())
    settings = teacher_settings(loaded.artefact.process, **given_options(options.sampling))
    with progress("grid", unit="trajectories") as show:
        on_batch = lambda done, total: show(done, total, "")  # noqa: E731
        levels = learned_levels(loaded, settings, wanted, options.num, options.batch_size, on_batch)
    learned = {"method": "GITS, 2405.11326", "trajectories": options.num, "guidance": settings.guidance}
    made = LearnedGrids(
        model_sha256=loaded.artefact.model_sha256,
        learned={**learned, "seed": settings.seed, "clip": settings.clip},
        levels={steps: tuple(values) for steps, values in levels.items()},
    )
    write_output_text(out, made.model_dump_json(indent=2) + "\n")
    lines = [
        f"{steps} steps: σ/α {', '.join(f'{one:g}' for one in values)}" for steps, values in levels.items()
    ]
    use = f"params.yaml takes them by\nsample:\n  spacing: learned\n  spacing_options: {{file: {out}}}"
    options.answer({"out": out, **made.model_dump(mode="json")}, "\n".join([*lines, f"{out}: {use}"]))


def _step_counts(text: str) -> list[int]:
    """Parse numbers of steps without duplicates, in order; UsageError if one is invalid."""
    try:
        return sorted(set(TypeAdapter(list[Steps]).validate_python(text.split(","))))
    except ValidationError:
        raise UsageError(
            f"--steps {printable(text)}: give numbers of steps with commas, such as 4,6,8"
        ) from None
