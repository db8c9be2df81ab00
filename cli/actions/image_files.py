"""Images sampled in batches, and the formats of their file."""

from pathlib import Path

import numpy as np

from cli.shared.progress import progress
from diffusion.images.pictures import contact_sheet, gif_bytes, png_bytes
from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images, save_npz
from diffusion.model.classifier import LoadedClassifier
from diffusion.model.model_file import Artefact, LoadedModel
from diffusion.process.condition import Condition
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import class_condition, mixed_condition
from diffusion.sample.generate import generate, should_compile
from diffusion.sample.sampler import Step
from diffusion.system.output_paths import write_output

GIF_FRAMES = 60  # at most


def frames_of(
    loaded: LoadedModel,
    classifier: LoadedClassifier | None,
    settings: SampleSettings,
    indices: range,
    klass: str | None,
    batch_size: int,
    animate: bool,
) -> tuple[list[Images], list[int] | None]:
    """Return frames (N, H, W, C), the last one the images, and labels; one frame without `animate`."""
    device = next(loaded.network.parameters()).device
    fast = should_compile(loaded.artefact, settings, -(-len(indices) // batch_size), device)
    condition = _condition(classifier.artefact if classifier else loaded.artefact, settings, indices, klass)
    batches = []
    with progress("sample") as show:
        for start in range(0, len(indices), batch_size):
            show(start, len(indices), "")
            part = slice(start, start + batch_size)
            rows = indices[part], condition.rows(part)
            batches.append(_batch(loaded, classifier, settings, *rows, animate, fast))
        show(len(indices), len(indices), "")
    frames = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return frames, None if condition.labels is None else condition.labels.tolist()


def _condition(labelled: Artefact, settings: SampleSettings, indices: range, klass: str | None) -> Condition:
    """Return the class of each image; none for an unconditional model without a classifier."""
    if klass is not None:
        return class_condition(labelled, klass, len(indices))
    return mixed_condition(labelled, settings, indices)


def _batch(
    loaded: LoadedModel,
    classifier: LoadedClassifier | None,
    settings: SampleSettings,
    indices: range,
    condition: Condition,
    animate: bool,
    fast: bool,
) -> list[Images]:
    """Return the frames of one batch; `fast` compiles the network."""
    device = next(loaded.network.parameters()).device
    every = -(-settings.steps // GIF_FRAMES)
    frames: list[Images] = []

    def keep(step: Step) -> None:
        if step.done % every == 0 or step.done == step.total:
            frames.append(to_nhwc(to_uint8(step.x)))

    watch = keep if animate else None
    images = generate(loaded, settings, indices, condition, device, watch, classifier, fast=fast)
    return frames or [to_nhwc(images)]


def _png(out: Path, frames: list[Images], labels: list[int] | None) -> None:
    write_output(out, lambda file: file.write(png_bytes(contact_sheet(frames[-1]))))


def _gif(out: Path, frames: list[Images], labels: list[int] | None) -> None:
    write_output(out, lambda file: file.write(gif_bytes([contact_sheet(frame) for frame in frames])))


def _npz(out: Path, frames: list[Images], labels: list[int] | None) -> None:
    write_output(out, lambda file: save_npz(file, frames[-1], labels))


WRITERS = {".png": _png, ".gif": _gif, ".npz": _npz}
