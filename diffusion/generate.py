"""A model's images by index: image i depends on the model, the settings and i alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.checkpoint import Artefact
from diffusion.config import SampleSettings
from diffusion.errors import UsageError
from diffusion.guidance import classifier_free
from diffusion.images import to_uint8
from diffusion.precision import autocast
from diffusion.random import ImageNoise, generator
from diffusion.sampling import Step, check_eta, sample
from diffusion.schedule import Schedule, check_timesteps, spaced_timesteps
from diffusion.unet import UNet


def check_settings(artefact: Artefact, settings: SampleSettings) -> Schedule:
    """The spaced schedule to walk; UsageError when this model cannot be sampled so."""
    process = artefact.diffusion
    if settings.timesteps is None:
        timesteps = spaced_timesteps(settings.spacing, settings.steps, process.timesteps)
    else:
        timesteps = check_timesteps(settings.timesteps, process.timesteps)
    schedule = Schedule.named(process.schedule, process.timesteps).spaced(timesteps)
    check_eta(schedule, settings.eta)
    if settings.noise == "learned" and not artefact.network.learned_variance:
        raise UsageError("noise learned needs a model with a learned variance; use small or large")
    if settings.guidance and not artefact.network.null_class:
        raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
    return schedule


def labels_of(artefact: Artefact, settings: SampleSettings, indices: Sequence[int]) -> Tensor | None:
    """The asked class of each image, (B,) int64, from (seed, index) alone; None if unconditional.

    UsageError when the mix of the data is asked of a model that does not know it.
    """
    classes = artefact.network.num_classes
    if not classes:
        return None
    if settings.classes == "balanced":
        return torch.tensor([index % classes for index in indices])
    if not artefact.data.counts:
        raise UsageError("classes data needs the class counts, which this model file lacks; use balanced")
    counts = torch.tensor(artefact.data.counts, dtype=torch.float64)
    draws = [
        torch.multinomial(counts, 1, generator=generator("label", settings.seed, index)) for index in indices
    ]
    return torch.cat(draws)


def class_index(artefact: Artefact, wanted: str) -> int:
    """The label of a class given by name or number; UsageError lists what there is."""
    names = artefact.data.classes
    if not names:
        raise UsageError("this model is unconditional: it takes no class")
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise UsageError(f"there is no class {wanted!r}: give 0 to {len(names) - 1}, or one of {shown}")


def generate(
    network: UNet,
    artefact: Artefact,
    settings: SampleSettings,
    indices: Sequence[int],
    labels: Tensor | None,
    device: torch.device,
    callback: Callable[[Step], None] | None = None,
) -> Tensor:
    """The images at `indices` with the given `labels`, uint8 (B, C, H, W) on the CPU.

    `network` is in eval mode on `device`. UsageError as `check_settings`.
    """
    spec = artefact.network
    noise = ImageNoise(settings.seed, indices, (spec.in_channels, spec.image_size, spec.image_size))
    return denoise(network, artefact, settings, noise.draw, labels, device, callback)


def denoise(
    network: UNet,
    artefact: Artefact,
    settings: SampleSettings,
    draw: Callable[[], Tensor],
    labels: Tensor | None,
    device: torch.device,
    callback: Callable[[Step], None] | None = None,
) -> Tensor:
    """The images that grow from what `draw` gives: x_T first, then each noisy step's z; as `generate`."""
    schedule = check_settings(artefact, settings)
    spec = artefact.network
    guided = classifier_free(
        autocast(network, artefact.precision), settings.guidance, spec.num_classes, spec.in_channels
    )
    x = sample(
        guided,
        schedule,
        draw,
        sampler=settings.sampler,
        eta=settings.eta,
        noise=settings.noise,
        clip=settings.clip,
        labels=None if labels is None else labels.to(device),
        device=device,
        callback=callback,
    )
    return to_uint8(x).cpu()
