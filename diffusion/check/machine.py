"""Checks of the machine: disk, memory, device and the extractor's weights, against what the config needs."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from diffusion.check.findings import Finding, Project, gigabytes
from diffusion.data.fetch import verify
from diffusion.data.prepare import shape_of
from diffusion.errors import DiffctlError
from diffusion.evaluation.specs import extractor_spec
from diffusion.grid import grid
from diffusion.memory import count_parameters, device_memory, fitting_microbatch, step_bytes
from diffusion.precision import default_device, resolve_precision
from diffusion.resolve import resolve
from diffusion.shape import UNetSpec

STATE_BYTES = 16  # a parameter in a saved state: weights, EMA and Adam's two moments in fp32
STATES = 3  # the two that are kept and the one being written


def check_disk(project: Project) -> Iterator[Finding]:
    """Room for what is still to be made: data, training states, model, samples and DVC's copies of them."""
    parts = {"data": _data_bytes(project), "samples": _sample_bytes(project)}
    if (spec := _spec(project)) is not None:
        parameters = count_parameters(spec)
        parts["training"] = parameters * (STATES * STATE_BYTES + 2 * 4)
    needed, free = sum(parts.values()), shutil.disk_usage(project.root).free
    message = f"about {gigabytes(needed)} are needed (" + ", ".join(
        f"{name} {gigabytes(size)}" for name, size in parts.items()
    )
    message += f"), {gigabytes(free)} are free"
    if needed > free:
        yield Finding("error", "disk", message, "make room, or lower data.image_size or sample.num_images")
    else:
        yield Finding("ok", "disk", message)


def check_memory(project: Project) -> Iterator[Finding]:
    """What a training step takes at most, against the memory of the GPU, or else of the machine."""
    spec = _spec(project)
    if spec is None:
        return  # the model does not fit the data, which is a finding of its own
    train = project.config.train
    total, free = device_memory(default_device())
    batch = train.microbatch or train.batch_size
    if batch == "auto":
        batch = fitting_microbatch(spec, train.batch_size, total)
    needed = step_bytes(spec, batch)
    message = (
        f"{count_parameters(spec) / 1e6:,.1f} M parameters; a step of {batch} images takes about "
        f"{gigabytes(needed)}, {gigabytes(free)} of {gigabytes(total)} are free"
    )
    remedy = "lower train.microbatch or train.batch_size, or set model.gradient_checkpointing: true"
    if needed > total:
        yield Finding("error", "memory", message, remedy)
    elif needed > free:
        yield Finding("warning", "memory", message, remedy)
    else:
        yield Finding("ok", "memory", message)


def check_device(project: Project) -> Iterator[Finding]:
    """What it will run on, and in which precision."""
    device = default_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    precision = resolve_precision(project.config.train.precision, device)
    yield Finding("ok", "device", f"{name}, {precision}")


def check_runner(project: Project) -> Iterator[Finding]:
    """Whether what makes the samples is installed."""
    if project.config.sample.runner == "ray" and find_spec("ray") is None:
        yield Finding("error", "runner", "sample.runner ray needs Ray", "pip install 'diffctl[ray]'")


def check_weights(project: Project) -> Iterator[Finding]:
    """Whether the extractor's weights are there and are the published ones."""
    from diffusion.evaluation.weights import INCEPTION_BYTES, INCEPTION_FILE

    evaluate = project.config.evaluate
    spec = extractor_spec(evaluate.extractor)
    if not spec.is_inception:
        yield Finding("ok", "extractor", f"the weights of {spec.name} come with its package")
        return
    path = evaluate.weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if path.is_file():
        try:
            verify(path, f"sha256:{spec.sha256}")
            yield Finding("ok", "extractor", f"the weights of {spec.name} are here and right")
        except DiffctlError as error:
            yield Finding("error", "extractor", str(error))
    elif evaluate.weights is not None:
        yield Finding("error", "extractor", f"evaluate.weights: there is no file {path}", "correct the path")
    else:
        message = f"the weights of {spec.name} are not here: {gigabytes(INCEPTION_BYTES)} will be downloaded"
        yield Finding("warning", "extractor", message, f"without a network, put them at {path}")


def _spec(project: Project) -> UNetSpec | None:
    """The configured network's shape, None when the configuration does not fit the data."""
    try:
        return resolve(project.config, project.train_meta(), torch.device("cpu")).network
    except DiffctlError:
        return None


def _data_bytes(project: Project) -> int:
    """Downloads and prepared images, both twice: unpacked, and in DVC's cache. Nothing when prepared."""
    if project.is_ready:
        return 0
    size, _, channels = shape_of(project.config.data, project.outlook.shape)
    return 2 * (project.outlook.download + project.outlook.images * size * size * channels)


def _sample_bytes(project: Project) -> int:
    """Every cell as finished ranges, as a store and in DVC's cache."""
    config, meta = project.config, project.train_meta()
    cells = len(grid(config))
    pixels = int(meta["image_size"]) ** 2 * int(meta["channels"])
    return 3 * cells * config.sample.num_images * pixels
