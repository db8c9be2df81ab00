"""A model's images by index: image i depends on the model, the settings and i alone."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.checkpoint import Described
from diffusion.classifier import LoadedClassifier
from diffusion.errors import UsageError
from diffusion.gaussian import Network, in_eps
from diffusion.guidance import (
    Gradient,
    classifier_free,
    classifier_gradient,
    classifier_guided,
    without_labels,
)
from diffusion.images import to_uint8
from diffusion.precision import autocast
from diffusion.random import ImageNoise, generator
from diffusion.sampling import Step, check_eta, check_noise, sample
from diffusion.schedule import Schedule, check_timesteps, spaced_timesteps
from diffusion.settings import SampleSettings
from diffusion.two_at_once import Stopped, results, two_at_once
from diffusion.unet import UNet

_Draw = Callable[[], Tensor]
_Callback = Callable[[Step], None]
_Walk = Callable[[_Draw, Tensor | None, _Callback | None], Tensor]
"""(draw, labels, callback) → images, as `denoise`."""


def check_settings(artefact: Described, settings: SampleSettings) -> Schedule:
    """The spaced schedule to walk; UsageError when this model cannot be sampled so."""
    process = artefact.process
    if settings.timesteps is None:
        timesteps = spaced_timesteps(settings.spacing, settings.steps, process.timesteps)
    else:
        timesteps = check_timesteps(settings.timesteps, process.timesteps)
    schedule = Schedule.named(process.schedule, process.timesteps).spaced(timesteps)
    check_eta(schedule, settings.eta)
    check_noise(settings.noise, artefact.network.learned_variance)
    if settings.guidance and not artefact.network.null_class:
        raise UsageError("guidance needs a model trained with train.p_uncond > 0; use guidance 0")
    return schedule


def labels_of(artefact: Described, settings: SampleSettings, indices: Sequence[int]) -> Tensor | None:
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


def class_index(artefact: Described, wanted: str) -> int:
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
    artefact: Described,
    settings: SampleSettings,
    indices: Sequence[int],
    labels: Tensor | None,
    device: torch.device,
    callback: _Callback | None = None,
    classifier: LoadedClassifier | None = None,
) -> Tensor:
    """The images at `indices` with the given `labels`, uint8 (B, C, H, W) on the CPU.

    `network` is in eval mode on `device`. On a CPU they are made in two halves, unless a `callback` is to see
    all of them at each step. UsageError as `check_settings`.
    """
    spec = artefact.network
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    walk = _walk(network, artefact, settings, device, classifier)

    def made(part: slice, callback: _Callback | None) -> Tensor:
        noise = ImageNoise(settings.seed, indices[part], shape)
        return walk(noise.draw, None if labels is None else labels[part], callback)

    if callback or device.type != "cpu" or torch.get_num_threads() < 2 or len(indices) < 2:
        return made(slice(None), callback)
    return torch.cat(_in_halves(made, len(indices)))


def denoise(
    network: UNet,
    artefact: Described,
    settings: SampleSettings,
    draw: _Draw,
    labels: Tensor | None,
    device: torch.device,
    callback: _Callback | None = None,
) -> Tensor:
    """The images that grow from what `draw` gives: x_T first, then each noisy step's z; as `generate`."""
    return _walk(network, artefact, settings, device, None)(draw, labels, callback)


def _in_halves(made: Callable[[slice, _Callback], Tensor], count: int) -> list[Tensor]:
    """Both halves of the images beside each other; at Ctrl-C or an error both end at their next step."""
    given_up = threading.Event()

    def go_on(step: Step) -> None:
        if given_up.is_set():
            raise Stopped

    with two_at_once() as pool:
        halves = [pool.submit(made, half, go_on) for half in (slice(count // 2), slice(count // 2, None))]
        return results(halves, given_up.set)


def _walk(
    network: UNet,
    artefact: Described,
    settings: SampleSettings,
    device: torch.device,
    classifier: LoadedClassifier | None,
) -> _Walk:
    """What makes images; all that depends neither on draws nor on labels is done here, once."""
    schedule = check_settings(artefact, settings)
    guided, gradient = _guided(network, artefact, settings, classifier)

    def walk(draw: _Draw, labels: Tensor | None, callback: _Callback | None) -> Tensor:
        x = sample(
            guided,
            schedule,
            draw,
            sampler=settings.sampler,
            eta=settings.eta,
            noise=settings.noise,
            clip=settings.clip,
            labels=None if labels is None else labels.to(device),
            gradient=gradient,
            device=device,
            callback=callback,
        )
        return to_uint8(x).cpu()

    return walk


def _guided(
    network: UNet, artefact: Described, settings: SampleSettings, classifier: LoadedClassifier | None
) -> tuple[Network, Gradient | None]:
    """The network under all its guidance; a gradient where it moves the step's mean instead of ε.

    With η = 1 a classifier guides by ADM's alg. 1, as DDPM; else by alg. 2, which any η allows.
    """
    spec, process = artefact.network, artefact.process
    guided = classifier_free(
        in_eps(autocast(network, artefact.precision), process),
        settings.guidance,
        spec.num_classes,
        spec.in_channels,
    )
    if classifier is None or settings.classifier_scale == 0:
        return guided, None
    check_classifier(artefact, classifier)
    if not spec.num_classes:
        guided = without_labels(guided)
    gradient = classifier_gradient(classifier.network, settings.classifier_scale)
    if settings.eta == 1:
        return guided, gradient
    schedule = Schedule.named(process.schedule, process.timesteps)
    return classifier_guided(guided, gradient, schedule, spec.in_channels), None


def check_classifier(artefact: Described, classifier: LoadedClassifier) -> None:
    """UsageError unless the classifier knows this model's images, its process and, if any, its classes."""
    ours, theirs = artefact.network, classifier.artefact.network
    process, seen = artefact.process, classifier.artefact.process
    if (ours.image_size, ours.in_channels) != (theirs.image_size, theirs.in_channels):
        raise UsageError(
            f"the classifier takes {theirs.image_size}×{theirs.image_size}×{theirs.in_channels} images, "
            f"the model makes {ours.image_size}×{ours.image_size}×{ours.in_channels}"
        )
    if (process.schedule, process.timesteps) != (seen.schedule, seen.timesteps):
        raise UsageError(
            f"the classifier knows the noise of {seen.schedule} with {seen.timesteps} timesteps, "
            f"the model has {process.schedule} with {process.timesteps}"
        )
    if ours.num_classes and artefact.data.classes != classifier.artefact.data.classes:
        raise UsageError("the classifier was trained on other classes than the model")
