"""What `fit` requires of images, labels and network, as prepared data and params.yaml are checked."""

import math

import torch
from torch import Tensor, nn

from diffusion.images.image_size import format_size
from diffusion.images.pixels import to_model
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.denoiser import Condition
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess
from diffusion.process.time_samplers import default_time_sampler
from diffusion.system.errors import UsageError
from diffusion.train.train_config import TrainConfig, check_whole_batch

IN_CODE_DIGEST = False  # diffusion/code_digest.py

MAX_VALUE = 10.0  # of a pixel in about [−1, 1]; one that was not scaled has values up to 255


def checked_tensors(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return images as uint8 or float32, and labels as int64; UsageError for others, or another shape."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
        raise UsageError(f"fit: images are {_describe(images)}: give a tensor (N, C, H, W)")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise UsageError(f"fit: images are {images.dtype}: give uint8, or real numbers in about [−1, 1]")
        images = images.float()
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= -MAX_VALUE and high <= MAX_VALUE):
            what = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            raise UsageError(f"fit: images have {what}: give real numbers in about [−1, 1]")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            given = f"{_describe(labels)} for {len(images):,} images"
            raise UsageError(f"fit: labels are {given}: give a tensor with one number per image")
        if labels.is_floating_point() or labels.is_complex():
            raise UsageError(f"fit: labels are {labels.dtype}: give whole numbers, from 0 on")
        labels = labels.long()
    return images, labels


def check_fits(
    config: TrainConfig, spec: NetworkSpec, process: NoiseProcess, images: Tensor, labels: Tensor | None
) -> None:
    """Raise UsageError unless network, process, images and labels belong together."""
    shape = tuple(images.shape[1:])
    if shape != spec.shape:
        what = f"images of {format_size(shape)} numbers for a network of {format_size(spec.shape)}"
        raise UsageError(f"fit: {what} (channels × height × width): give images of its size, or another spec")
    _check_channels(spec.out_channels, spec, process)
    if labels is not None:
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= spec.num_classes:
            classes = f"the network's classes are 0 to {spec.num_classes - 1}"
            raise UsageError(f"fit: labels are from {low} to {high}: {classes}")
    if config.p_uncond and not spec.null_class:
        raise UsageError("fit: p_uncond has no effect: the network's spec needs null_class")
    if config.augment and not getattr(spec, "augmented", False):
        raise UsageError("fit: augment is a condition of the network: its spec needs augmented=True")
    try:
        check_whole_batch(process.config.loss, config)
    except ValueError as error:
        raise UsageError(f"fit: {error}") from None


def check_output(
    network: nn.Module, config: TrainConfig, spec: NetworkSpec, process: NoiseProcess, image: Tensor
) -> None:
    """Raise UsageError unless the output for one image (1, C, H, W), with its highest label, fits."""
    device = next(network.parameters()).device
    x = (to_model(image) if image.dtype == torch.uint8 else image).to(device)
    label = spec.num_classes - (not config.p_uncond)  # the highest one is that of no class
    labels = torch.tensor([label], device=device) if spec.num_classes else None
    t = default_time_sampler(process).times(torch.tensor([0.5], dtype=torch.float64))
    network.eval()  # a training begins with network.train()
    try:
        with torch.no_grad():
            output = NetworkDenoiser(network, process).output(x, t, Condition(1, labels))
    except IndexError as error:
        if labels is None:
            raise
        raise UsageError(f"fit: the network does not take the label {label} ({error})") from error
    if (1, *output.shape[2:]) != (len(output), *x.shape[2:]):
        shapes = f"shape {tuple(output.shape)} for shape {tuple(x.shape)}"
        raise UsageError(f"fit: the network returns {shapes}: its output must be (B, C, H, W)")
    _check_channels(output.shape[1], spec, process)


def _check_channels(found: int, spec: NetworkSpec, process: NoiseProcess) -> None:
    """Raise UsageError unless a network has the number of output channels that its process needs."""
    wanted = spec.in_channels * (1 + process.config.learned_variance)
    if found != wanted:
        needs = f"the process with loss {process.config.loss} needs {wanted}"
        other = "a network with twice the channels" if found < wanted else "a learned variance"
        raise UsageError(
            f"fit: the network returns {found} channels, and {needs}: use another loss or {other}"
        )


def _describe(given: object) -> str:
    return f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
